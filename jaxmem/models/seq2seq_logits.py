"""The logits of an encoder-decoder's next token: the source is read once, then one token a step."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ..core.leaf import is_encoded
from .model import Model
from .next_token_logits import CACHE_STEP, PROMPT_STEP, CacheReader, Reader, shard_like


def source_reader(model: Model, source: np.ndarray, tokens: int, beams: int = 1) -> Reader:
    """What reads the decoder's tokens after a source, with `beams` rows for each row.

    The source is ids (batch, S), or spectrograms (batch, mels, frames); `tokens` is the most that
    the decoder reads.
    """
    config, params = model.config, model.params
    rows, mask = len(source) * beams, None
    if config.reads == "text":
        source, mask = _padded(source, config)
    memory = _encode(config, params, source, mask)
    if beams > 1:
        memory = jax.tree.map(lambda x: jnp.repeat(x, beams, axis=1), memory)
        mask = None if mask is None else np.repeat(mask, beams, axis=0)
    dtype = jax.tree.leaves(params, is_leaf=is_encoded)[0].dtype
    room = tokens + -tokens % CACHE_STEP
    state = shard_like(params, config.cache(rows, room, dtype), config, rows)

    return CacheReader(_forward, config, (params, memory, mask), state)


def _padded(source: np.ndarray, config: Any) -> tuple[np.ndarray, np.ndarray]:
    """Ids (batch, S) padded to a rounded length, so that fewer are compiled, and their mask."""
    length = source.shape[1]
    padded = min(length + -length % PROMPT_STEP, max(length, config.of_encoder().context))
    mask = np.broadcast_to(np.arange(padded) < length, (len(source), padded))
    source = np.pad(source, ((0, 0), (0, padded - length)), constant_values=config.pad or 0)
    return source, mask


@functools.partial(jax.jit, static_argnames="config")
def _encode(config: Any, params: dict, source: Array, mask: Array | None) -> dict[str, Array]:
    """The keys and values of a source, (layers, batch, heads, S, head_dim) each."""
    return Model(config, {}, None, "").apply(params, source, mask, method="encode")


def _forward(
    config: Any, inputs: tuple, ids: Array, cache: dict, position: Array, last: Array | None = None
) -> tuple[Array, dict]:
    """(logits (batch, T, vocab) of ids (batch, T), or of `ids[:, last]`; the cache with them)."""
    params, memory, mask = inputs
    args = (ids, memory, mask, cache, position)
    logits, cache = Model(config, {}, None, "").apply(params, *args, method="decode")
    return logits if last is None else lax.dynamic_slice_in_dim(logits, last, 1, axis=1), cache
