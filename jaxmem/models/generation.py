"""generate: reads a prompt, then samples one token after the other."""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array

from ..architectures.families.seq2seq_families import CHOSEN
from ..core.arguments import takes
from ..kv_cache.quantized import KVCache
from .beam_search import BeamSearch, search_beams
from .device_decode_loop import MOST_STEPS, State
from .flax_model import FlaxModel
from .model import Model
from .next_token_logits import Reader, reader
from .output_text import output_text
from .output_tokens import banned_tokens, check_room, forced_tokens, without
from .prompts import prompt_rows
from .sampling import Sampling, pick
from .seq2seq_logits import source_reader
from .text_models import reads_source

_SECONDS_OF_A_RUN = 0.25  # a text is shown, and an interrupt seen, this often


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
    min_p: float | None = None,
    seed: int = 0,
    cache: KVCache | None = None,
    beams: BeamSearch | None = None,
    forced: Sequence[int] | None = None,
    stream: Callable[[str], Any] | None = None,
) -> Generation:
    """Generates tokens after `prompt`, until the end tokens of the model's configuration.

    An encoder-decoder reads the prompt, and generates a text of its own.

    Prompts of different lengths are run one length after the other: each gives the tokens that it
    gives without the others, and none is padded. The cache takes 2 * layers * batch * kv_heads *
    length * head_dim elements. Each step updates it in place. Encoded parameters stay encoded.
    A module of `from_flax` that has no cache computes the whole text again for each token.

    Args:
        model: a model with weights that predicts text.
        prompt: a text or a list of texts, or token ids: (tokens,), (batch, tokens), or a list of
            rows that may differ in length. For a model that reads sounds: WAV files, samples
            (samples,) at the rate of its processor, a list of them, or spectrograms
            (batch, mels, frames).
        max_new_tokens: the most tokens that are generated.
        temperature: 0 takes the most probable token; above 0, a token is drawn from the softmax of
            logits / temperature.
        top_k: draw among this many most probable tokens.
        top_p: draw among the fewest tokens whose probabilities add up to this (Holtzman et al.,
            2020).
        min_p: draw among the tokens at least this many times as probable as the most probable one
            (Nguyen et al., 2024).
        seed: the same seed draws the same tokens.
        cache: `KVCache(4)` holds keys and values in 4 bits; None holds floats.
        beams: `BeamSearch(4)` searches for the most probable text with 4 beams.
        forced: the tokens that every text of an encoder-decoder begins with, such as a language;
            None for those of the model's configuration. They take the place of a prefix in which
            the model chooses a token, such as the language and the task of a Whisper.
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
            empty, holds ids outside the vocabulary or leaves no room in the context; an option is
            out of range, or does not go with the model or another option.
        TypeError: the prompt is neither text nor integers; `cache` is no KVCache.
    """
    rows = prompt_rows(model, prompt)
    forced = forced_tokens(model, forced)
    check_room(model, rows, len(forced), max_new_tokens)
    sampling = Sampling(temperature, top_k, top_p, min_p)
    sampled = sampling != Sampling()
    if beams is not None and (sampled or cache is not None or stream is not None):
        raise ValueError(f"{beams} goes without sampling, without a cache and without a stream")
    own_cache = isinstance(model, FlaxModel) or reads_source(model)
    if (cache is not None and own_cache) or (beams is not None and isinstance(model, FlaxModel)):
        name, value = ("cache", cache) if cache is not None else ("beams", beams)
        raise ValueError(f"{name} is {value}, expected None for {model.source}")
    if stream is not None and (model.tokenizer is None or len(rows) > 1):
        raise ValueError(f"stream wants a tokenizer and a single prompt, not {len(rows)}")
    run = functools.partial(_sampled, stream=stream, sampling=sampling, seed=seed)
    run = run if beams is None else functools.partial(_searched, search=beams)
    run = functools.partial(run, model, forced=forced, max_new_tokens=max_new_tokens, cache=cache)
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


def _sampled(
    model: Model,
    ids: np.ndarray,
    *,
    forced: tuple[int, ...],
    max_new_tokens: int,
    cache: KVCache | None,
    sampling: Sampling,
    seed: int,
    stream: Callable[[str], Any] | None,
) -> Generation:
    """`generate` for prompts `ids` (batch, tokens) of one length, with options that are checked."""
    eos, batch, greedy = np.array(model.config.eos, np.int32), len(ids), not sampling.temperature
    key = None if greedy else jax.random.key(seed)
    start, shown = time.perf_counter(), ""
    first, read = _begin(model, ids, forced, max_new_tokens, cache)
    logits = without(read(first, 0), banned_tokens(model.config, 0))
    # One row of logits is read here in less time than it takes to load another program.
    one_greedy = greedy and batch == 1
    token = np.asarray(logits).argmax(-1) if one_greedy else pick(logits, key, 0, sampling)
    token = np.asarray(token, np.int32)
    state = State(token, np.int32(first.shape[1] - 1), np.int32(0), np.zeros(batch, bool))
    state = state.after(token, eos)
    new = [np.tile(np.array(forced, np.int32), (batch, 1)), token[:, None]]
    times, steps = [time.perf_counter() - start], 1
    while True:
        if stream is not None:
            text = output_text(model, ids[0], np.concatenate(new, axis=1)[0])
            if not text.endswith("\ufffd"):
                stream(text[len(shown) :])
                shown = text
        left = max_new_tokens - int(state.step)
        if not left or np.asarray(state.ended).all():
            break
        start = time.perf_counter()
        tokens, state = read.go_on(state, min(steps, left), key, sampling, model.config)
        new.append(tokens)
        seconds = (time.perf_counter() - start) / tokens.shape[1]
        times += [seconds] * tokens.shape[1]
        steps = min(MOST_STEPS, max(1, int(_SECONDS_OF_A_RUN / seconds)))
    return _generation(model, ids, np.concatenate(new, axis=1), times)


def _searched(
    model: Model,
    ids: np.ndarray,
    *,
    forced: tuple[int, ...],
    max_new_tokens: int,
    cache: None,
    search: BeamSearch,
) -> Generation:
    """`generate` with beams, for prompts `ids` (batch, tokens) of one length."""
    start = time.perf_counter()
    first, read = _begin(model, ids, forced, max_new_tokens, cache, search.beams)
    texts = search_beams(
        read,
        first,
        search,
        max_new_tokens=max_new_tokens,
        forced=len(forced),
        eos=model.config.eos,
        banned=functools.partial(banned_tokens, model.config),
    )
    longest = max(map(len, texts))
    new = np.array([(*forced, *text, *text[-1:] * (longest - len(text))) for text in texts])
    return _generation(model, ids, new.astype(np.int32), [time.perf_counter() - start])


def _begin(
    model: Model,
    ids: np.ndarray,
    forced: tuple[int, ...],
    max_new_tokens: int,
    cache: KVCache | None,
    beams: int = 1,
) -> tuple[np.ndarray, Reader]:
    """(the tokens (batch, n) that are read first, what gives the logits after them)."""
    if not reads_source(model):
        return ids, reader(model, len(ids) * beams, ids.shape[1], max_new_tokens, cache)
    c = model.config
    prefix = () if CHOSEN in c.prefix and forced != c.forced else c.prefix  # forced in its place
    tokens = np.array([c.start, *prefix, *forced], np.int32)
    first = np.tile(tokens, (len(ids), 1))
    read = source_reader(model, ids, first.shape[1] + max_new_tokens, beams)
    for at in np.flatnonzero(tokens == CHOSEN):
        logits = without(read(np.repeat(first[:, :at], beams, axis=0), 0), banned_tokens(c, 0))
        first[:, at] = np.asarray(logits)[::beams].argmax(-1)
    return first, read


def _generation(
    model: Model, prompt: np.ndarray, new: np.ndarray, times: list[float]
) -> Generation:
    """The result: new tokens (batch, tokens), with the seconds of each step."""
    has_text = model.tokenizer is not None
    return Generation(
        prompt=prompt,
        ids=new,
        texts=tuple(output_text(model, *row) for row in zip(prompt, new)) if has_text else (),
        first_token_seconds=times[0],
        seconds_per_token=float(np.median(times[2:])) if len(times) > 2 else None,
    )
