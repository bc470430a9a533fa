"""What a card measures of one row beside tasks: seconds, losses of texts, bits that flip."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ..models.generation import generate
from ..models.text_models import context
from .card_rows import AskedModel
from .confidence import Estimate
from .flip_divergence import flip_divergence
from .flipped_bits import parts_of
from .membership_attack import Membership, membership
from .task_scores import TaskScores
from .unwanted_words import holds_words

_PROMPT_TOKENS, _NEW_TOKENS = 16, 8
_CONTINUED_TOKENS = 24
_TEXT_TOKENS = 64  # of a text that is seen or unseen


def seconds_of(asked: AskedModel, ids: np.ndarray) -> dict[str, float]:
    """{what: seconds}: `load`, if the weights were in a file, `first_token` and `token` after it.

    The first 16 tokens of `ids` (tokens,) are a prompt, or half of the model's context. It is read
    twice, as the first time programs compile.
    """
    prompt = ids[: min(_PROMPT_TOKENS, context(asked.model) // 2)]
    count = min(_NEW_TOKENS, context(asked.model) - len(prompt))

    def measure() -> TaskScores:
        model = dataclasses.replace(asked.model, config=_endless(asked.model.config))
        runs = [generate(model, prompt, max_new_tokens=count) for _ in range(2)]
        item = {"item": 0, "first_token": runs[1].first_token_seconds}
        if runs[1].seconds_per_token is not None:
            item["token"] = runs[1].seconds_per_token
        if asked.load_seconds is not None:
            item["load"] = asked.load_seconds
        return TaskScores("seconds", (item,))

    (item,) = asked.column("seconds", prompt.tolist(), measure).items
    return {name: item[name] for name in ("load", "first_token", "token") if name in item}


def bit_flips_of(
    asked: AskedModel, ids: np.ndarray, window: int, rates: tuple[float, ...], seed: int = 0
) -> dict[str, dict[str, Any]]:
    """{part: {rate: KL in nats, and the share of broken tokens}} on the first window of `ids`."""
    text = ids[None, :window].astype(np.int32)

    def measure() -> TaskScores:
        found, before = [], asked.logits(asked.model.params, text)
        for part in parts_of(asked.model.params):
            found += flip_divergence(
                asked.forward,
                asked.model.params,
                text,
                part=part,
                rates=rates,
                key=jax.random.key(seed),
                before=before,
            )
        items = ({"item": i, **dataclasses.asdict(flips)} for i, flips in enumerate(found))
        return TaskScores("bit_flips", tuple(items))

    columns: dict[str, dict[str, Any]] = {}
    for x in asked.column("bit_flips", [text.tolist(), rates, seed], measure).items:
        row = columns.setdefault(x["part"], {})
        row[f"{x['rate']:g}"] = {"kl": x["kl"], "broken": x["broken"]}
    return columns


def continuations_of(
    asked: AskedModel, dense: AskedModel, text: str, words: Sequence[str], most: int | None
) -> dict[str, Any]:
    """The share of texts with one of `words`, and in how many that is not as in the dense model's.

    Prompts of 16 tokens stand at even distances in the text; `most` of them, or 256. Each goes on
    for 24 tokens, the most probable ones.
    """
    ids = asked.ids(text)
    start = min(_PROMPT_TOKENS, context(asked.model) // 2)
    count = min(_CONTINUED_TOKENS, context(asked.model) - start)
    places = np.linspace(0, len(ids) - start, min(most or 256, len(ids) // start), dtype=int)
    prompts = np.stack([ids[at : at + start] for at in places])
    digest = hashlib.sha256(prompts.tobytes() + "\n".join(words).encode()).hexdigest()

    def measure() -> TaskScores:
        texts = generate(asked.model, prompts, max_new_tokens=count).texts
        scores = [float(holds_words(text, words)) for text in texts]
        items = [{"item": i, "text": t, "score": s} for i, (t, s) in enumerate(zip(texts, scores))]
        return TaskScores("continuations", tuple(items))

    asked.continued = asked.column("continuations", digest, measure)
    scores = [item["score"] for item in asked.continued.items]
    changed = [a["score"] != s for a, s in zip(dense.continued.items, scores)]
    share = {"texts": len(scores), "with_words": Estimate.of(scores, 0.0, 1.0)}
    return {"continuations": share | {"changed": float(np.mean(changed))}}


def membership_of(asked: AskedModel, seen: str, unseen: str, most: int | None) -> Membership:
    """How well the model tells windows of 64 tokens of two texts apart; `most` of each, or all."""
    losses = [
        _losses_of(asked, name, text, most) for name, text in (("seen", seen), ("unseen", unseen))
    ]
    return membership(*losses)


def _losses_of(asked: AskedModel, name: str, text: str, most: int | None) -> list[float]:
    """The mean loss of each window in nats."""
    ids = asked.ids(text)
    window = min(_TEXT_TOKENS, context(asked.model))
    rows = ids[: len(ids) // window * window].reshape(-1, window)[:most]
    if not len(rows):
        raise ValueError(f"the {name} text has {len(ids)} tokens, expected at least {window}")

    def measure() -> TaskScores:
        scores = asked.scorer([(row[:1], row[1:]) for row in rows])
        items = ({"item": i, "loss": -x.logprob / x.tokens} for i, x in enumerate(scores))
        return TaskScores(name, tuple(items))

    digest = hashlib.sha256(rows.tobytes()).hexdigest()
    return [item["loss"] for item in asked.column(name, digest, measure).items]


def _endless(config: Any) -> Any:
    """The configuration without tokens that end a text."""
    return dataclasses.replace(config, eos=()) if getattr(config, "eos", ()) else config
