"""The logits of the next token: from a KV cache, or from the whole text computed again."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding

from ..codecs.compiled_rows import compiled_rows
from ..core.leaf import is_encoded
from ..kv_cache.quantized import BLOCK_TOKENS, KVCache
from ..parallel import layouts
from ..parallel.sharding import shard, shardings
from .device_decode_loop import Forward, State, decode
from .flax_model import FlaxModel
from .model import Model
from .output_tokens import banned_tokens, without
from .prompt_blocks import MOST_BLOCK_TOKENS, logits_by_blocks
from .sampling import Sampling, pick

PROMPT_STEP, CACHE_STEP = 32, 128  # lengths are rounded up to these, to compile less often


class Reader:
    """What reads tokens, of which the model keeps the keys and values, or the texts themselves."""

    def __call__(self, tokens: np.ndarray, position: int, rows: np.ndarray | None = None) -> Array:
        """The logits (batch, vocab) after `tokens` (batch, n), the first of them at `position`.

        Row i goes on with what row `rows[i]` has read before; with its own without `rows`.
        """
        raise NotImplementedError

    def go_on(
        self, state: State, steps: int, key: Array, sampling: Sampling, config: Any
    ) -> tuple[np.ndarray, State]:
        """More tokens (batch, n) of each row, at least one and at most `steps`; the new state."""
        logits = self(np.asarray(state.token)[:, None], int(state.position))
        logits = without(logits, banned_tokens(config, int(state.step)))
        token = pick(logits, key, state.step, sampling)
        token = np.where(state.ended, state.token, token).astype(np.int32)
        return token[:, None], state.after(token, np.array(config.eos, np.int32))


class CacheReader(Reader):
    """A reader of a model whose `forward` takes a cache; `decode` generates tokens in one program.

    `first_length` is the length to which what is read first is padded.
    """

    def __init__(
        self, forward: Forward, config: Any, inputs: Any, cache: Any, first_length: int = 0
    ):
        self.forward, self.config, self.inputs, self.cache = forward, config, inputs, cache
        self.first_length = first_length

    def __call__(self, tokens: np.ndarray, position: int, rows: np.ndarray | None = None) -> Array:
        if rows is not None:
            self.cache = rows_of(self.cache, rows)
        last = tokens.shape[1] - 1
        if position == 0 and self.first_length:
            tokens = np.pad(tokens, ((0, 0), (0, self.first_length - tokens.shape[1])))
        logits, self.cache = logits_after(
            self.config, self.forward, self.inputs, tokens, self.cache, position, last=last
        )
        return logits

    def go_on(
        self, state: State, steps: int, key: Array, sampling: Sampling, config: Any
    ) -> tuple[np.ndarray, State]:
        step = int(state.step)
        tokens, state, self.cache = decode(
            config, self.forward, self.inputs, self.cache, state, steps, key, sampling=sampling
        )
        return np.asarray(tokens)[:, : int(state.step) - step], state


class BlockReader(CacheReader):
    """A `CacheReader` that reads a short prompt by `logits_by_blocks`, into a new cache."""

    def __init__(self, forward: Forward, config: Any, inputs: Any, **sizes: Any):
        super().__init__(forward, config, inputs, None)
        self.sizes = sizes

    def __call__(self, tokens: np.ndarray, position: int, rows: np.ndarray | None = None) -> Array:
        if position > 0:
            return super().__call__(tokens, position, rows)
        count = tokens.shape[1]
        tokens = np.pad(tokens, ((0, 0), (0, MOST_BLOCK_TOKENS - count)))
        args = self.config, self.forward, self.inputs, tokens, np.int32(count)
        logits, self.cache = logits_by_blocks(*args, **self.sizes)
        return logits


class ModuleReader(Reader):
    """A reader of a user's module with a cache, in which steps of its own are compiled."""

    def __init__(self, model: FlaxModel, cache: Any, first_length: int):
        self.model, self.cache, self.first_length = model, cache, first_length

    def __call__(self, tokens: np.ndarray, position: int, rows: np.ndarray | None = None) -> Array:
        last = tokens.shape[1] - 1
        if position == 0:
            tokens = np.pad(tokens, ((0, 0), (0, self.first_length - tokens.shape[1])))
        logits, self.cache = self.model.logits_after(
            self.model.params, tokens, self.cache, position, last=last
        )
        return logits


class TextReader(Reader):
    """A reader without a cache: the text is padded to one length, which one program computes."""

    def __init__(self, model: FlaxModel, batch: int, length: int):
        room = min(length + -length % PROMPT_STEP, model.config.context)
        self.model, self.text = model, np.zeros((batch, room), np.int32)

    def __call__(self, tokens: np.ndarray, position: int, rows: np.ndarray | None = None) -> Array:
        model, end = self.model, position + tokens.shape[1]
        self.text[:, position:end] = tokens
        run = lambda ids: model.logits_after(model.params, ids, None, None, last=end - 1)[0]
        logits = run(self.text.copy())  # JAX may read the buffer after the text has changed
        if position == 0:
            _check_causal(model, logits, run, self.text, end)
        return logits


def reader(
    model: Model, batch: int, length: int, max_new_tokens: int, cache: KVCache | None
) -> Reader:
    """What reads a prompt of (batch, length) tokens, then up to `max_new_tokens` one by one."""
    if model.config.cache is None:
        return TextReader(model, batch, length + max_new_tokens)
    config, params = model.config, model.params
    steps = length + -length % (BLOCK_TOKENS if cache else PROMPT_STEP)
    steps = steps if cache else min(steps, max(length, config.context))
    is_own = isinstance(model, FlaxModel)
    is_state = config.by_token if is_own else getattr(config, "recurrence", None) is not None
    if is_state:
        steps = length  # a state would take in the padding
    room = max(steps, length + max_new_tokens)
    room += -room % CACHE_STEP
    room = min(room, config.context) if is_own else room  # its table of positions may end there
    dtype = jax.tree.leaves(params, is_leaf=is_encoded)[0].dtype
    in_blocks = batch == 1 and cache is None and not is_state and length <= MOST_BLOCK_TOKENS
    columns = compiled_rows(params) if in_blocks and not is_own else 0
    if columns and length + -length % columns <= config.context:  # a block ends before it
        return BlockReader(_forward, config, params, columns=columns, room=room, dtype=dtype)
    empty = cache.empty(config, batch, room, dtype) if cache else config.cache(batch, room, dtype)
    state = shard_like(params, empty, config, batch)
    if is_own:
        return ModuleReader(model, state, steps)
    return CacheReader(_forward, config, params, state, steps)


def _forward(
    config: Any, params: dict, ids: Array, cache: Any, position: Array, last: Array | None = None
) -> tuple[Array, Any]:
    return Model(config, {}, None, "").apply(params, ids, cache, position, last=last)


@functools.partial(jax.jit, static_argnames=("config", "forward"), donate_argnames="cache")
def logits_after(
    config: Any,
    forward: Forward,
    inputs: Any,
    ids: Array,
    cache: Any,
    position: Array,
    *,
    last: Array,
) -> tuple[Array, Any]:
    """(logits (batch, vocab) after `ids[:, last]`, the cache with `ids` in it).

    The configuration is static and the weights are arguments, so that a compiled step holds no
    weights. Padding after `last` fills cache positions that later steps write before they read.
    """
    logits, cache = forward(config, inputs, ids, cache, position, last)
    return logits[:, 0], cache


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
