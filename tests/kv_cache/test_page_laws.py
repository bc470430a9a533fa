"""The accounts of a pool: free + allocated = capacity, references = entries + holds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxmem as jm
from jaxmem.architectures import llama

CONFIG = llama.Config(vocab=8, width=8, ffn=8, layers=1, heads=1, kv_heads=1, head_dim=8)
ROWS, MOST, PAGES, SIZE = 4, 5, 12, 8


def empty(pages=PAGES):
    return jm.Pages(size=SIZE).empty(CONFIG, pages, rows=ROWS, most=MOST)


def written(pool):
    """The pool, as if each row had read what it has room for."""
    return jm.pages.PagePool(**vars(pool) | {"length": pool.room})


def check_accounts(pool, held):
    """The laws, for a pool on the host whose pages are held `held` (1 + capacity,) times."""
    free = pool.stack[: pool.top]
    assert len(free) == PAGES - (pool.refs > 0).sum()
    assert len(set(free)) == len(free) and not pool.refs[free].any()
    entries = np.bincount(pool.table.ravel(), minlength=PAGES + 1)
    assert np.array_equal(pool.refs[1:], (entries + held)[1:]) and pool.refs[0] == 0
    has_page = pool.table > 0
    assert np.array_equal(has_page.sum(1), -(-pool.room // SIZE))
    last = np.where(pool.room % SIZE, pool.table[np.arange(ROWS), pool.room // SIZE % MOST], 0)
    assert (entries[last[last > 0]] == 1).all()  # no row writes in another's page


@functools.cache
def operations():
    """One of five operations, on the pool and the pages that are held, and what it gave."""

    def alloc(pool, held, x):
        return *jm.pages.alloc(pool, x[:ROWS] % 30 - 2), held

    def release(pool, held, x):
        return jm.pages.release(pool, x[:2] % (ROWS + 2) - 1), jnp.zeros(ROWS, bool), held

    def share(pool, held, x):
        pool, ok = jm.pages.share(written(pool), x[0] % ROWS, x[1] % ROWS, x[2] % 45)
        return pool, jnp.full(ROWS, ok), held

    def hold(pool, held, x):
        row = pool.table[x[0] % ROWS]
        more = jnp.zeros_like(held).at[row].add(jnp.where(row > 0, 1, 0))
        return jm.pages.hold(pool, row), jnp.zeros(ROWS, bool), held + more

    def drop(pool, held, x):
        ids = jnp.arange(PAGES + 1, dtype=jnp.int32)
        ids = jnp.where(held > 0, ids, 0)
        return jm.pages.drop(pool, ids), jnp.zeros(ROWS, bool), held - jnp.minimum(held, 1)

    @jax.jit
    def run(pool, held, numbers):
        def step(state, x):
            pool, ok, held = lax.switch(
                x[0] % 5, (alloc, release, share, hold, drop), *state, x[1:]
            )
            return (pool, held), (pool, held, ok)

        return lax.scan(step, (pool, held), numbers)[1]

    return run


@pytest.mark.parametrize("seed", range(3))
def test_after_any_operations_the_accounts_add_up(seed):
    numbers = np.random.default_rng(seed).integers(0, 10**6, (300, 1 + ROWS))
    outs = operations()(empty(), jnp.zeros(PAGES + 1, jnp.int32), jnp.asarray(numbers, jnp.int32))
    pools, helds, oks = jax.device_get(outs)
    assert oks.any() and not oks.all()
    for i in range(len(numbers)):
        check_accounts(jax.tree.map(lambda x: x[i], pools), helds[i])  # noqa: B023


def test_what_has_no_room_changes_nothing():
    pool, ok = jm.pages.alloc(empty(4), jnp.array([20, 20, 8, 0]))
    assert ok.tolist() == [True, False, True, True] and pool.room.tolist() == [20, 0, 8, 0]
    same, ok = jm.pages.alloc(pool, jnp.array([5, 1, 33, 41]))  # the pool, and `most`, are full
    assert not ok.any()
    for got, want in zip(jax.tree.leaves(same), jax.tree.leaves(pool)):
        assert np.array_equal(got, want)
    again, ok = jm.pages.alloc(pool, jnp.array([4, 0, 0, -1]))  # up to the end of its last page
    assert ok.tolist() == [True, True, True, False] and again.room[0] == 24


@pytest.mark.parametrize("row", [0, 1, 9, -1], ids=["itself", "not empty", "no row", "negative"])
def test_only_an_empty_row_begins_with_shared_tokens(row):
    pool = written(jm.pages.alloc(empty(), jnp.array([20, 8, 0, 0]))[0])
    blob, ids = jm.pages.take_row(pool, 0), pool.table[0]
    calls = (
        lambda: jm.pages.share(pool, 0, row, 16),
        lambda: jm.pages.attach(pool, row, ids, 16),
        lambda: jm.pages.put_row(pool, row, blob),
    )
    for call in calls:
        same, ok = call()
        assert not ok
        assert all(map(np.array_equal, jax.tree.leaves(same)[1:], jax.tree.leaves(pool)[1:]))


def test_a_row_released_twice_frees_its_pages_once():
    pool = jm.pages.alloc(empty(), jnp.array([20, 8, 0, 0]))[0]
    once = jm.pages.release(pool, jnp.array([True, False, False, False]))
    twice = jm.pages.release(once, jnp.array([0, 0]))
    assert int(once.top) == int(twice.top) == PAGES - 1
    assert int(jm.pages.drop(twice, once.stack[:4]).top) == PAGES - 1  # free pages stay free


def test_usage_counts_shared_tokens_once():
    pool = written(jm.pages.alloc(empty(), jnp.array([20, 0, 0, 0]))[0])
    pool, _ = jm.pages.share(pool, 0, 1, 18)
    pool = jm.pages.hold(pool, pool.table[0, :1])
    use = jm.pages.usage(pool)
    assert (use.allocated, use.free, use.shared, use.tokens) == (4, 8, 2, 22)
    assert use.utilisation == 22 / 32 and use.utilisation + use.fragmentation == 1
    held = jm.pages.usage(jm.pages.release(pool, jnp.array([0, 1])))
    assert (held.allocated, held.tokens) == (1, SIZE)
