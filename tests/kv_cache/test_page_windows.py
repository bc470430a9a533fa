"""Pages behind the windows of their layers are free, and what is read stays the same."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from page_pools import CONFIGS, IDS, SIZE, empty, model_of, read_of

import jaxmem as jm


def test_pages_behind_all_windows_are_free_and_not_missed():
    model = model_of("local")
    want = jax.jit(model.apply)(model.params, IDS)
    pool, held = empty("local"), []
    for chunk in range(4):
        ids = IDS[:, chunk * SIZE : (chunk + 1) * SIZE]
        got, pool = read_of("local")(pool, ids, [SIZE, 0, SIZE])
        pool = jm.pages.release_behind(pool)
        expected = want[::2, chunk * SIZE : (chunk + 1) * SIZE]
        np.testing.assert_allclose(got[::2], expected, rtol=1e-4, atol=1e-4)
        held.append(20 - int(pool.top))
    assert held == [2, 4, 4, 4]
    assert not jm.pages.share(pool, 0, 1, 16)[1]  # its first pages are gone
    with pytest.raises(ValueError, match="sees all tokens"):
        jm.pages.release_behind(empty("llama"))


@pytest.mark.parametrize("sinks", [0, 3])
def test_usage_says_which_tokens_no_query_to_come_sees(sinks):
    config = dataclasses.replace(CONFIGS["some"], window=10)
    local = sum(config.local)
    pages = jm.Pages(size=SIZE, window=20, sinks=sinks)
    pool = pages.empty(config, pages=20, rows=3, most=6)
    pool, _ = jm.pages.alloc(pool, jnp.array([32, 0, 9]))
    pool = dataclasses.replace(pool, length=pool.room)
    lost = [
        max(n - 9 - sinks, 0) * local + max(n - 19 - sinks, 0) * (config.layers - local)
        for n in (32, 9)
    ]
    assert jm.pages.usage(pool).unseen == pytest.approx(sum(lost) / (41 * config.layers))
    pool = jm.pages.hold(jm.pages.release(pool, jnp.array([2])), pool.table[0])
    assert jm.pages.usage(jm.pages.release(pool, jnp.array([0]))).unseen == 0  # held for any row


def test_a_window_of_the_pool_is_that_of_the_layers():
    want = jax.jit(model_of("local").apply)(model_of("local").params, IDS)
    pool = jm.Pages(size=SIZE, window=10).empty(CONFIGS["llama"], pages=20, rows=3, most=6)
    assert pool.groups.reaches == (CONFIGS["local"].window,) == (10,)
    for chunk in range(4):
        ids = IDS[:, chunk * SIZE : (chunk + 1) * SIZE]
        got, pool = read_of("llama")(pool, ids, [SIZE] * 3)
        pool = jm.pages.release_behind(pool)
        np.testing.assert_allclose(got, want[:, chunk * SIZE :][:, :SIZE], rtol=1e-4, atol=1e-4)
    assert int(pool.top) == 20 - 3 * 2


@pytest.mark.parametrize("bits", [None, 8])
def test_a_query_sees_the_sinks_and_its_window_where_they_are_in_the_text(bits):
    model, window, sinks = model_of("one"), 10, 3
    pages = jm.Pages(bits, size=SIZE, window=window, sinks=sinks)
    pool = pages.empty(model.config, pages=4, rows=1, most=6)
    for chunk in range(4):  # 32 tokens in no more than 4 pages
        ids = IDS[:1, chunk * SIZE : (chunk + 1) * SIZE]
        got, pool = read_of("one")(pool, ids, [SIZE])
        pool = jm.pages.release_behind(pool)
    assert pool.table[0, :4].tolist()[1] == 0 and int(pool.top) == 1
    seen = jnp.array([*range(sinks), *range(32 - window, 32)], jnp.int32)[None]
    near = jnp.take_along_axis(IDS[:1], seen, 1)
    want = model.apply(model.params, near, segments=jnp.ones_like(seen), positions=seen)
    bound = 1e-4 if bits is None else 2e-2
    np.testing.assert_allclose(got[0, -1], want[0, -1], rtol=bound, atol=bound)


@pytest.mark.parametrize("bits", [None, 4])
def test_layers_with_a_window_give_pages_back_and_no_bit_changes(bits):
    config, read, ids = CONFIGS["some"], read_of("some"), IDS[:, :SIZE]
    pools = [
        jm.Pages(bits, size=SIZE, by_window=apart).empty(config, pages=60, rows=3, most=6)
        for apart in (False, True)
    ]
    assert [len(pool.groups) for pool in pools] == [1, 3]
    shared, ok = jm.pages.share(read(pools[1], ids, [SIZE, 0, 0])[1], 0, 1, SIZE - 3)
    assert ok and int((shared.refs > 0).sum()) == 6  # a part of each of 3 pages is copied
    got, _ = read(shared, ids[:1].repeat(3, 0), [0, SIZE, 0])
    assert jnp.isfinite(got).all()
    for step in range(4):
        tokens = [SIZE, SIZE if step else 3, SIZE if step < 2 else 0]
        (want, pools[0]), (got, pools[1]) = (read(pool, ids, tokens) for pool in pools)
        np.testing.assert_array_equal(got, want)
        pools[1] = jm.pages.release_behind(pools[1])
    used = np.asarray(pools[1].table).reshape(3, 6, 3) > 0
    assert used[0].sum(0).tolist() == [2, 2, 4]  # of 32 tokens, those from 22 on are seen
    uses = [jm.pages.usage(pool) for pool in pools]
    assert uses[0].unseen > 2 * uses[1].unseen > 0
    use = uses[1]
    assert use.allocated + use.free == 60 and use.allocated == used.sum()
    blob = jm.pages.take_row(pools[1], 0)
    moved, ok = jm.pages.put_row(jm.pages.release(pools[1], jnp.array([0, 2])), 2, blob)
    assert ok
    token = jnp.ones((3, SIZE), jnp.int32)
    last, there = (
        np.asarray(read(*asked)[0][:, 0])
        for asked in ((pools[1], token, [1, 0, 0]), (moved, token, [0, 0, 1]))
    )
    np.testing.assert_array_equal(there[2], last[0])
