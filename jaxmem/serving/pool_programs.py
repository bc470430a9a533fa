"""The programs of an engine: one reads a chunk of a prompt, one generates tokens of all rows."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..kv_cache import pages
from ..kv_cache.page_pool import PagePool
from ..models.device_decode_loop import MOST_STEPS
from ..models.model import Model
from .row_sampling import RowChoices, next_tokens

attach = jax.jit(pages.attach, donate_argnames="pool")
drop = jax.jit(pages.drop, donate_argnames="pool")
hold = jax.jit(pages.hold, donate_argnames="pool")
put = jax.jit(pages.put, donate_argnames="pool")
take = jax.jit(pages.take)
release_behind = jax.jit(pages.release_behind, donate_argnames="pool")
release = jax.jit(pages.release, donate_argnames="pool")
take_row = jax.jit(pages.take_row)
put_row = jax.jit(pages.put_row, donate_argnames="pool")


@functools.partial(jax.jit, donate_argnames="pool")
def reserve(pool: PagePool, count: Array) -> tuple[PagePool, Array, Array]:
    """`jm.pages.reserve` of at most as many pages as a row may have."""
    return pages.reserve(pool, count, most=pool.most)


@jax.jit
def table_row(pool: PagePool, row: Array) -> Array:
    """The pages (most,) of a row, in order; 0 for none."""
    return pool.table[row]


@functools.partial(jax.jit, static_argnames="config", donate_argnames="pool")
def read_chunk(
    config: Any, params: dict, pool: PagePool, row: Array, ids: Array, count: Array
) -> tuple[PagePool, Array]:
    """(the pool whose row `row` has `count` more tokens, whether there were pages for them).

    The logits are not asked for, so that the compiler leaves out the product that makes them.

    Args:
        config: the configuration of the model.
        params: its weights.
        pool: the pool.
        row: the number of a row.
        ids: the tokens (chunk,), of which the first `count` are read.
        count: how many tokens.
    """
    mine = jnp.arange(pool.rows, dtype=jnp.int32) == row
    pool, ok = pages.alloc(pool, jnp.where(mine, count, 0).astype(jnp.int32))
    _, pool = _forward(config, params, ids[None], pool, rows=row[None])
    return pool, ok[row]


@functools.partial(jax.jit, static_argnames="config", donate_argnames="pool")
def decode_rows(
    config: Any,
    params: dict,
    pool: PagePool,
    token: Array,
    counts: Array,
    step: Array,
    seen: Array,
    choices: RowChoices,
) -> tuple[PagePool, Array, Array, Array, Array]:
    """Up to `counts` more tokens of each row, fewer for a row that ends.

    Each row sees its own tokens only, so that its numbers are the same whatever other rows hold.

    Args:
        config: the configuration of the model; its end tokens end a row.
        params: its weights.
        pool: the pool; rows that generate have no room left in it.
        token: (rows,) the last token of each row, which is not in the pool yet.
        counts: (rows,) tokens to generate, at most `MOST_STEPS`; 0 for a row that takes no part.
        step: (rows,) how many tokens each row has generated before.
        seen: (rows, vocab) bool, the tokens of each row's prompt and answer.
        choices: how each row chooses its tokens.

    Returns:
        the pool; tokens (rows, MOST_STEPS) and their log-probabilities, of which the first `made`
        (rows,) count; and `made`; whether each row got its pages (rows,).
    """
    pool, ok = pages.alloc(pool, counts)
    eos = jnp.asarray(config.eos, jnp.int32)
    rows = jnp.arange(pool.rows, dtype=jnp.int32)
    out = jnp.zeros((pool.rows, MOST_STEPS), jnp.int32)

    def is_live(i: Array, ended: Array) -> Array:
        return ok & (i < counts) & ~ended

    def goes_on(carry: tuple) -> Array:
        i, _, _, ended, *_ = carry
        return is_live(i, ended).any()

    def one_token(carry: tuple) -> tuple:
        i, pool, token, ended, seen, out, logprobs, made = carry
        logits, pool = _forward(config, params, token[:, None], pool)
        token, logprob = next_tokens(logits[:, 0], choices, step + i, seen)
        made = made + is_live(i, ended).astype(jnp.int32)
        ended = ended | (token[:, None] == eos[None]).any(axis=1)
        seen = seen.at[rows, token].set(True)
        out = lax.dynamic_update_slice(out, token[:, None], (jnp.int32(0), i))
        logprobs = lax.dynamic_update_slice(logprobs, logprob[:, None], (jnp.int32(0), i))
        return i + 1, pool, token, ended, seen, out, logprobs, made

    nothing = jnp.zeros(pool.rows, bool)
    carry = (
        jnp.int32(0),
        pool,
        token,
        nothing,
        seen,
        out,
        jnp.zeros(out.shape, jnp.float32),
        jnp.zeros(pool.rows, jnp.int32),
    )
    _, pool, _, _, _, out, logprobs, made = lax.while_loop(goes_on, one_token, carry)
    return pool, out, logprobs, made, ok


def _forward(config: Any, params: dict, ids: Array, pool: PagePool, **rows: Array) -> Any:
    return Model(config, {}, None, "").apply(params, ids, pool, **rows)
