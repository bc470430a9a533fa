"""generate: reads a prompt, then samples one token after the other."""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array

from ..core.arguments import shown, takes
from ..kv_cache.quantized import KVCache
from .flax_model import FlaxModel
from .model import Model, check_in_vocabulary
from .sampling import check_sampling, pick
from .text_models import context, vocabulary
from .token_logits import reader


@dataclasses.dataclass(frozen=True)
class Generation:
    """The tokens that a model generated after a prompt.

    `ids` (batch, tokens) and `texts` hold the new tokens only; a row that ended early is filled
    with its last token. `prompt` (batch, tokens) is a tuple of rows if they differ in length.
    `texts` is empty if the model has no tokenizer. `first_token_seconds` is the time to read the
    prompt, including compilation. `seconds_per_token` is the median over later steps, without the
    first of them, which compiles; None if there are no such steps.
    """

    prompt: np.ndarray | tuple[np.ndarray, ...]
    ids: np.ndarray
    texts: tuple[str, ...]
    first_token_seconds: float
    seconds_per_token: float | None

    @property
    def text(self) -> str:
        """The text of the first row."""
        return self.texts[0] if self.texts else ""


@takes()
def generate(
    model: Model,
    prompt: str | Sequence | np.ndarray | Array,
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    cache: KVCache | None = None,
    stream: Callable[[str], Any] | None = None,
) -> Generation:
    """Generates tokens after `prompt`, until the end tokens of the model's configuration.

    Prompts of different lengths are run one length after the other: each gives the tokens that it
    gives without the others, and none is padded. The cache takes 2 * layers * batch * kv_heads *
    length * head_dim elements. Each step updates it in place. Encoded parameters stay encoded.
    A module of `from_flax` that has no cache computes the whole text again for each token.

    Args:
        model: a model with weights that predicts text.
        prompt: a text or a list of texts, or token ids: (tokens,), (batch, tokens), or a list of
            rows that may differ in length.
        max_new_tokens: the most tokens that are generated.
        temperature: 0 takes the most probable token; above 0, a token is drawn from the softmax of
            logits / temperature.
        top_k: draw among this many most probable tokens.
        top_p: draw among the fewest tokens whose probabilities add up to this (Holtzman et al.,
            2020).
        seed: the same seed draws the same tokens.
        cache: `KVCache(4)` holds keys and values in 4 bits; None holds floats.
        stream: called with each new piece of text of a single prompt.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxmem.models import Model
        >>> from jaxmem.architectures import llama
        >>> from jaxmem.models.generation import generate
        >>> config = llama.Config(
        ...     vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8
        ... )
        >>> init = jax.jit(llama.module(config).init)
        >>> params = init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
        >>> generate(Model(config, params, None, "random"), [1, 2, 3], max_new_tokens=4).ids.shape
        (1, 4)

    Raises:
        ValueError: the model predicts no text, is not causal or has no weights; the prompt is
            empty, holds ids outside the vocabulary or leaves no room in the context; a sampling
            option is out of range.
        TypeError: the prompt is neither text nor integers; `cache` is no KVCache.
    """
    rows = _tokens(model, prompt, vocabulary(model))
    _check(model, max(map(len, rows)), max_new_tokens)
    check_sampling(temperature, top_k, top_p, seed)
    if cache is not None and isinstance(model, FlaxModel):
        raise ValueError(
            f"cache is {cache}, expected None: {model.source} has its own cache or none"
        )
    if stream is not None and (model.tokenizer is None or len(rows) > 1):
        raise ValueError(f"stream wants a tokenizer and a single prompt, not {len(rows)}")
    options = dict(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    run = functools.partial(
        _generate, model, max_new_tokens=max_new_tokens, cache=cache, stream=stream, **options
    )
    of_length: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        of_length.setdefault(len(row), []).append(index)
    runs = [(which, run(np.stack([rows[i] for i in which]))) for which in of_length.values()]
    return runs[0][1] if len(runs) == 1 else _joined(rows, runs)


def _joined(rows: list[np.ndarray], runs: list[tuple[list[int], Generation]]) -> Generation:
    """One result of several, each with the numbers of its rows; in the order of the rows."""
    ids: list = [None] * len(rows)
    texts = [""] * len(rows)
    tokens = max(generation.ids.shape[1] for _, generation in runs)
    for which, generation in runs:
        padding = ((0, 0), (0, tokens - generation.ids.shape[1]))
        for i, row in zip(which, np.pad(generation.ids, padding, mode="edge")):
            ids[i] = row
        for i, text in zip(which, generation.texts):
            texts[i] = text
    times = [g.seconds_per_token for _, g in runs if g.seconds_per_token is not None]
    return Generation(
        prompt=tuple(rows),
        ids=np.stack(ids),
        texts=tuple(texts) if runs[0][1].texts else (),
        first_token_seconds=sum(generation.first_token_seconds for _, generation in runs),
        seconds_per_token=float(np.median(times)) if times else None,
    )


def _generate(
    model: Model,
    ids: np.ndarray,
    *,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int,
    cache: KVCache | None,
    stream: Callable[[str], Any] | None,
) -> Generation:
    """`generate` for prompts `ids` (batch, tokens) of one length, with options that are checked."""
    key, eos, (batch, length) = jax.random.key(seed), model.config.eos, ids.shape
    read = reader(model, batch, length, max_new_tokens, cache)
    new: list[np.ndarray] = []
    times: list[float] = []
    shown, ended = "", np.zeros(batch, bool)
    step, position = ids, 0
    for i in range(max_new_tokens):
        start = time.perf_counter()
        logits = read(step, position)
        token = pick(logits, key, i, temperature=temperature, top_k=top_k, top_p=top_p)
        token = np.where(ended, new[-1] if new else 0, token).astype(np.int32)
        times.append(time.perf_counter() - start)
        new.append(token)
        ended |= np.isin(token, eos)
        if stream is not None and not (text := _text(model, ids[0], new, 0)).endswith("\ufffd"):
            stream(text[len(shown) :])
            shown = text
        if ended.all():
            break
        step, position = token[:, None], length + i
    rows = range(batch) if model.tokenizer is not None else ()
    return Generation(
        prompt=ids,
        ids=np.stack(new, axis=1),
        texts=tuple(_text(model, ids[b], new, b) for b in rows),
        first_token_seconds=times[0],
        seconds_per_token=float(np.median(times[2:])) if len(times) > 2 else None,
    )


def _tokens(model: Model, prompt: Any, vocab: int) -> list[np.ndarray]:
    """The prompts as rows of token ids, (tokens,) int32 each."""
    if isinstance(prompt, str):
        prompt = [prompt]
    if _all_of(prompt, str):
        if model.tokenizer is None:
            raise ValueError(f"{model.source} has no tokenizer: expected token ids, not text")
        prompt = [model.tokenizer.encode(text).ids for text in prompt]
    if not isinstance(prompt, list | tuple) and not np.ndim(prompt):
        raise TypeError(f"prompt is {shown(prompt)}, expected a text, or token ids (tokens,)")
    ragged = _all_of(prompt, (list, tuple, np.ndarray, Array))
    rows = [np.asarray(row) for row in prompt] if ragged else list(np.atleast_2d(prompt))
    if not rows or any(row.ndim != 1 or not row.size for row in rows):
        shapes = [row.shape for row in rows]
        raise ValueError(f"the prompts have shapes {shapes}, expected rows of ids, not empty")
    for row in rows:
        if not np.issubdtype(row.dtype, np.integer):
            raise TypeError(f"the prompt holds {row.dtype}, expected text or integer token ids")
        check_in_vocabulary(row, vocab)
    return [row.astype(np.int32) for row in rows]


def _all_of(prompt: Any, kind: Any) -> bool:
    """Whether the prompt is a list or tuple, not empty, whose members are all of a kind."""
    is_list = isinstance(prompt, list | tuple) and len(prompt) > 0
    return is_list and all(isinstance(row, kind) for row in prompt)


def _check(model: Model, length: int, max_new_tokens: int) -> None:
    """Refuses a model that cannot generate so many tokens after prompts of up to `length`."""
    if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(model.tensors)):
        raise ValueError(f"{model.source} has shapes only, expected a model with weights")
    if max_new_tokens < 1 or length + max_new_tokens > context(model):
        raise ValueError(
            f"{max_new_tokens} tokens after a prompt of {length}, expected at least 1 and "
            f"no more than {context(model)} together"
        )


def _text(model: Model, prompt: np.ndarray, new: list[np.ndarray], row: int) -> str:
    """The text that the new tokens of a row add to the text of the prompt."""
    before = model.tokenizer.decode(prompt.tolist())
    both = model.tokenizer.decode([*prompt.tolist(), *(int(token[row]) for token in new)])
    return both[len(before) :]
