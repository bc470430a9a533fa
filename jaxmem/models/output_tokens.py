"""The tokens of a text that a model generates: those it begins with, and those it never has."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..architectures.families.seq2seq_families import read_tokens
from ..io.json_fields import JsonFields
from .model import Model, check_in_vocabulary
from .text_models import context, reads_source


def with_output_tokens(config: Any, generation: JsonFields) -> Any:
    """An encoder-decoder's configuration with the tokens that a generation_config.json names.

    Raises:
        ValueError: a field of it cannot be.
    """
    if config.family != "seq2seq":
        return config
    tokens = read_tokens(generation)
    return dataclasses.replace(config, **{k: x for k, x in tokens.items() if k != "eos"})


def forced_tokens(model: Model, forced: Sequence[int] | None) -> tuple[int, ...]:
    """The tokens that every text begins with; none in a decoder, which goes on with its prompt.

    Raises:
        ValueError: `forced` is given for a decoder, or holds ids outside the vocabulary.
        TypeError: it holds no integers.
    """
    if forced is None:
        return getattr(model.config, "forced", ())
    if not reads_source(model):
        raise ValueError(f"forced is {forced}, expected None: {model.source} goes on with a prompt")
    ids = np.atleast_1d(np.asarray(forced, np.int64 if not len(forced) else None))
    if not np.issubdtype(ids.dtype, np.integer):
        raise TypeError(f"forced holds {ids.dtype}, expected integer token ids")
    check_in_vocabulary(ids, model.config.vocab)
    return tuple(ids.tolist())


def check_room(model: Model, rows: list[np.ndarray], forced: int, max_new_tokens: int) -> None:
    """Refuses a model that cannot generate so many tokens for the prompts `rows`.

    Raises:
        ValueError: the model has no weights, or not so many positions.
    """
    if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(model.tensors)):
        raise ValueError(f"{model.source} has shapes only, expected a model with weights")
    length = max(map(len, rows))
    before, where, room = length, f"a prompt of {length}", context(model)
    if reads_source(model):
        before, room = 1 + len(model.config.prefix) + forced, model.config.context
        where = f"{before} that come first"
        most = model.config.of_encoder().context
        if length > most and model.config.reads == "text":
            raise ValueError(f"a prompt of {length} tokens, expected at most {most}")
    if max_new_tokens < 1 or before + max_new_tokens > room:
        raise ValueError(
            f"{max_new_tokens} tokens after {where}, expected at least 1 and "
            f"no more than {room} together"
        )


def banned_tokens(config: Any, step: int) -> np.ndarray | None:
    """Where (vocab,) bool a token cannot be the one that is generated at `step`; None for nowhere.

    Example:
        >>> from jaxmem.architectures.seq2seq import Config
        >>> sizes = dict(vocab=4, width=8, ffn=8, layers=1, heads=1)
        >>> config = Config(**sizes, suppressed=(3,), suppressed_first=(1,))
        >>> banned_tokens(config, 0).tolist()
        [False, True, False, True]
    """
    ids = getattr(config, "suppressed", ())
    ids = (*ids, *(getattr(config, "suppressed_first", ()) if step == 0 else ()))
    return _at(ids, config.vocab) if ids else None


def without(logits: Array, banned: np.ndarray | None) -> Array:
    """The logits (batch, vocab) with -inf at tokens that cannot be."""
    return logits if banned is None else jnp.where(banned[None], -jnp.inf, logits)


@functools.cache
def _at(ids: tuple[int, ...], vocab: int) -> np.ndarray:
    """Where (vocab,) the ids are; ids outside the vocabulary are nowhere."""
    return np.isin(np.arange(vocab), ids)
