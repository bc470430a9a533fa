"""The logits of the next token: from a KV cache, or from the whole text computed again."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.sharding import NamedSharding

from ..core.leaf import is_encoded
from ..kv_cache.quantized import BLOCK_TOKENS, KVCache
from ..parallel import layouts
from ..parallel.sharding import shard, shardings
from .flax_model import FlaxModel
from .model import Model

PROMPT_STEP, CACHE_STEP = 32, 128  # lengths are rounded up to these, to compile less often

# read(tokens (batch, n), position): logits (batch, vocab) after `tokens`, the first at `position`.
# With a third argument, `rows` (batch,), row i goes on with what row `rows[i]` has read.
Reader = Callable[..., Array]


def reader(
    model: Model, batch: int, length: int, max_new_tokens: int, cache: KVCache | None
) -> Reader:
    """What reads a prompt of (batch, length) tokens, then up to `max_new_tokens` one by one."""
    if model.config.cache is None:
        return _without_cache(model, batch, length + max_new_tokens)
    return _with_cache(model, batch, length, max_new_tokens, cache)


def _with_cache(
    model: Model, batch: int, length: int, max_new_tokens: int, cache: KVCache | None
) -> Reader:
    config, params = model.config, model.params
    steps = length + -length % (BLOCK_TOKENS if cache else PROMPT_STEP)
    steps = steps if cache else min(steps, max(length, config.context))
    is_own = isinstance(model, FlaxModel)
    if config.by_token if is_own else getattr(config, "recurrence", None):
        steps = length  # a state would take in the padding
    room = max(steps, length + max_new_tokens)
    room += -room % CACHE_STEP
    room = min(room, config.context) if is_own else room  # its table of positions may end there
    dtype = jax.tree.leaves(params, is_leaf=is_encoded)[0].dtype
    empty = cache.empty(config, batch, room, dtype) if cache else config.cache(batch, room, dtype)
    state = shard_like(params, empty, config, batch)
    run = model.logits_after if is_own else functools.partial(logits_after, config)

    def read(tokens: np.ndarray, position: int, rows: np.ndarray | None = None) -> Array:
        nonlocal state
        state = state if rows is None else rows_of(state, rows)
        last = tokens.shape[1] - 1
        if position == 0:  # the cache takes a prompt in rounded lengths
            tokens = np.pad(tokens, ((0, 0), (0, steps - length)))
        logits, state = run(params, tokens, state, position, last=last)
        return logits

    return read


@functools.partial(jax.jit, static_argnames="config", donate_argnames="cache")
def logits_after(
    config: Any, params: dict, ids: Array, cache: Any, position: Array, *, last: Array
) -> tuple[Array, Any]:
    """(logits (batch, vocab) after `ids[:, last]`, the cache with `ids` in it).

    The configuration is static and the weights are arguments, so that a compiled step holds no
    weights. Padding after `last` fills cache positions that later steps write before they read.
    """
    logits, cache = Model(config, {}, None, "").apply(params, ids, cache, position)
    return lax.dynamic_index_in_dim(logits, last, axis=1, keepdims=False), cache


@functools.partial(jax.jit, donate_argnames="cache")
def rows_of(cache: Any, rows: Array) -> Any:
    """The rows (batch,) of a cache, whose arrays are (layers, batch, ...)."""
    return jax.tree.map(lambda x: jnp.take(x, rows, axis=1), cache)


def shard_like(params: dict, cache: Any, config: Any, batch: int) -> Any:
    """The cache on the devices of the weights, its heads and rows sharded like theirs."""
    where = getattr(jax.tree.leaves(params)[0], "sharding", None)
    if not isinstance(where, NamedSharding) or where.mesh.size == 1:
        return cache
    rules = layouts.cache(config, where.mesh, batch)
    return shard(cache, shardings(cache, where.mesh, rules))


def _without_cache(model: FlaxModel, batch: int, length: int) -> Reader:
    """Reads the text padded to one length, so that one program serves every step."""
    room = min(length + -length % PROMPT_STEP, model.config.context)
    text = np.zeros((batch, room), np.int32)

    def read(tokens: np.ndarray, position: int) -> Array:
        end = position + tokens.shape[1]
        text[:, position:end] = tokens
        run = lambda ids: model.logits_after(model.params, ids, None, None, last=end - 1)[0]
        logits = run(text.copy())  # JAX may read the buffer after `text` has changed
        if position == 0:
            _check_causal(model, logits, run, text, end)
        return logits

    return read


def _check_causal(
    model: FlaxModel, logits: Array, run: Callable, text: np.ndarray, end: int
) -> None:
    """Refuses a module whose logits depend on the padding after the text, text[:, end:]."""
    other = text.copy()
    other[:, end:] = logits.shape[-1] - 1
    change = float(jnp.abs(run(other) - logits).max())
    if not change <= 1e-3 * (1 + float(jnp.abs(logits).max())):
        raise ValueError(
            f"{model.source}: the logits after {end} tokens change by {change:.3g} with the "
            "tokens that come later; to generate wants a causal module"
        )
