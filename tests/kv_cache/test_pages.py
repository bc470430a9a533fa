"""A pool of pages: the logits of a cache of one piece, and rows that do not touch each other."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmem as jm
from jaxmem.architectures import gpt2, llama
from jaxmem.kv_cache.encoded_pages import decode_pages, encode_pages
from jaxmem.models import Model

SIZES = dict(vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8)
WIDE = dict(heads=2, kv_heads=1, head_dim=128, layers=1)  # keys and values in arrays of their own
CONFIGS = {
    "llama": llama.Config(**SIZES),
    "windows": llama.Config(
        **SIZES, local=(True, False), window=11, attention_softcap=5.0, sinks=True
    ),
    "wide": llama.Config(**SIZES | WIDE, positions="alibi", norm="layer"),
    "local": llama.Config(**SIZES, local=(True, True), window=10),
    "one": llama.Config(**SIZES | dict(layers=1)),
    "some": llama.Config(**SIZES | dict(layers=3), local=(True, True, False), window=11),
    "gpt2": gpt2.Config(vocab=64, width=32, layers=2, heads=4, context=64),
}
IDS = jax.random.randint(jax.random.key(1), (3, 32), 0, 64, jnp.int32)
SIZE = 8
CODES = dict(bits=4, rotate=True)


@functools.cache
def model_of(family):
    config = CONFIGS[family]
    module = (gpt2 if family == "gpt2" else llama).module(config)
    shapes = jax.eval_shape(module.init, jax.random.key(0), IDS)["params"]
    draw = np.random.default_rng(0).standard_normal
    params = jax.tree.map(lambda x: jnp.asarray(draw(x.shape, np.float32) * 0.2), shapes)
    return Model(config, params, None, "random")


@functools.cache
def read_of(family):
    """Reads a chunk of ids into a pool: each row the tokens that are asked for it."""
    model = model_of(family)

    @jax.jit
    def read(params, ids, pool, tokens):
        pool, ok = jm.pages.alloc(pool, tokens)
        logits, pool = model.apply(params, ids, pool)
        return logits, pool, ok

    def checked(pool, ids, tokens, params=model.params):
        logits, pool, ok = read(params, ids, pool, jnp.asarray(tokens, jnp.int32))
        assert ok.all()
        return logits, pool

    return checked


def empty(family, bits=None, rotate=False):
    options = jm.Pages(bits, size=SIZE, rotate=rotate)
    return options.empty(CONFIGS[family], pages=20, rows=3, most=6)


CASES = [(family, False) for family in CONFIGS if family not in ("local", "some")]
CASES += [(f, True) for f in ("llama", "windows", "gpt2")]


@pytest.mark.parametrize("family, encoded", CASES)
def test_rows_of_any_length_get_the_logits_of_the_whole_text(family, encoded):
    model, pool, lengths = model_of(family), empty(family), np.array([32, 21, 9])
    params = model.params
    if encoded:
        params = jm.encode(params, jm.choose(params, {".*/kernel": jm.Int(4, group=8)}))
    want = jax.jit(model.apply)(jm.decode(params), IDS)
    starts = range(33) if encoded else [0, 1, 9, 17, *range(18, 33)]
    for start, end in itertools.pairwise(starts):
        tokens = np.clip(lengths - start, 0, end - start)
        got, pool = read_of(family)(pool, IDS[:, start:end], tokens, params)
        for row, count in enumerate(tokens):
            expected = want[row, start : start + count]
            np.testing.assert_allclose(got[row, :count], expected, rtol=1e-4, atol=1e-4)
    assert pool.length.tolist() == lengths.tolist()


def in_chunks(pool, chunks, tokens):
    """The logits of chunks of `IDS` by number, and the pool."""
    out = []
    for chunk in chunks:
        ids = IDS[:, chunk * SIZE : (chunk + 1) * SIZE]
        logits, pool = read_of("llama")(pool, ids, tokens)
        out.append(np.asarray(logits))
    return out, pool


def dirty(pool):
    """The pool, in whose pages is what is no number."""
    worst = lambda x: jnp.full_like(x, jnp.nan if jnp.issubdtype(x.dtype, jnp.floating) else 255)
    stores, tails = jax.tree.map(worst, (pool.stores, pool.tails))
    return dataclasses.replace(pool, stores=stores, tails=tails)


@pytest.mark.parametrize("options", [{}, CODES], ids=["floats", "codes"])
def test_a_row_has_the_same_bits_alone_and_among_others_on_dirty_pages(options):
    read, ids = read_of("llama"), IDS[:, :SIZE]
    alone, pool = in_chunks(empty("llama", **options), (0, 1), [0, SIZE, 0])
    step, _ = read(pool, ids[:, :1], [0, 1, 0])
    among = dirty(empty("llama", **options))
    _, among = read(among, ids[::-1], [5, 0, SIZE])  # other pages, and longer rows
    _, among = read(among, ids[::-1], [SIZE, 0, SIZE])
    full, among = in_chunks(among, (0, 1), [SIZE, SIZE, 3])
    step_among, _ = read(among, ids[:, :1], [1, 1, 1])
    for a, b in zip((*alone, step), (*full, step_among)):
        assert np.array_equal(np.asarray(a[1]), np.asarray(b[1]))


@pytest.mark.parametrize("options", [{}, CODES], ids=["floats", "codes"])
def test_a_shared_beginning_gives_the_bits_of_reading_it(options):
    cold, pool = in_chunks(empty("llama", **options), (0, 1, 2), [SIZE, 0, 0])
    attach, put_row = jax.jit(jm.pages.attach), jax.jit(jm.pages.put_row)
    # by reference, through the host, and with the whole row swapped out and in
    blob = jax.device_get(jm.pages.take(pool, pool.table[0, :2]))
    other, ids, _ = jm.pages.reserve(dirty(empty("llama", **options)), 2, most=2)
    other = jm.pages.drop(attach(jm.pages.put(other, ids, blob), 0, ids, 2 * SIZE)[0], ids)
    _, half = in_chunks(empty("llama", **options), (0, 1), [SIZE, 0, 0])
    swapped = jax.device_get(jm.pages.take_row(half, 0))
    back, ok = put_row(jm.pages.release(half, jnp.array([0])), 0, swapped)
    assert ok and back.length.tolist() == [2 * SIZE, 0, 0]
    shared, ok = jm.pages.share(pool, 0, 1, 2 * SIZE)
    assert ok and int(shared.top) == int(pool.top)
    for warm, row in ((other, 0), (back, 0), (shared, 1)):
        tokens = np.eye(3, dtype=int)[row] * SIZE
        ids = jnp.broadcast_to(IDS[:1, 2 * SIZE : 3 * SIZE], (3, SIZE))
        logits, _ = read_of("llama")(warm, ids, tokens)
        assert np.array_equal(logits[row], cold[2][0])


def test_a_part_of_a_page_is_copied_before_it_is_written():
    _, pool = in_chunks(empty("llama"), (0, 1), [SIZE - 2, 0, 0])  # 12 tokens
    before = jax.device_get(jm.pages.take(pool, pool.table[0, :2]))
    pool, ok = jm.pages.share(pool, 0, 1, 11)
    _, pool = in_chunks(pool, (2,), [0, SIZE, 0])
    assert ok and pool.table[:2, 0].tolist() == [1, 1] and pool.table[1, 1] != pool.table[0, 1]
    after = jax.device_get(jm.pages.take(pool, pool.table[0, :2]))
    assert all(map(np.array_equal, jax.tree.leaves(before), jax.tree.leaves(after)))


def test_a_pool_that_grew_gives_the_same_bits_and_shrinks_again():
    want, _ = in_chunks(empty("llama", 4), (0, 1, 2), [SIZE, 3, SIZE])
    small = jm.Pages(4, size=SIZE).empty(CONFIGS["llama"], pages=3, rows=3, most=6)
    first, pool = in_chunks(small, (0,), [SIZE, 3, SIZE])
    grown = jm.pages.grow(pool, 7)
    rest, grown = in_chunks(grown, (1, 2), [SIZE, 3, SIZE])
    for a, b in zip(want, first + rest):
        assert np.array_equal(a[0], b[0]) and np.array_equal(a[2], b[2])
    assert jm.pages.shrink(grown).capacity == 10
    back = jm.pages.shrink(jm.pages.release(grown, jnp.arange(3)))
    assert back.capacity == int(back.top) == 3 and jm.nbytes(back) == jm.nbytes(small)


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


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_encoded_pages_are_read_as_what_they_decode_to(bits):
    _, pool = in_chunks(empty("llama", bits), (0, 1), [SIZE, 5, 0])
    ids = pool.table[:2, :2].reshape(-1)
    decoded = jnp.concatenate(decode_pages(jm.pages.take(pool, ids), bits), -1)
    floats = jm.Pages(size=SIZE).empty(CONFIGS["llama"], pages=20, rows=3, most=6)
    floats, _ = jm.pages.alloc(floats, pool.room)
    ids = floats.table[:2, :2].reshape(-1)
    floats = jm.pages.put(floats, ids, jm.pages.PageStore(decoded, None))
    tail = jm.pages.PageStore(pool.tails[0][:, 1:2], None)
    floats = jm.pages.put(floats, ids[3:], tail)  # row 1 has no second full page
    floats = dataclasses.replace(floats, length=pool.length)
    got, _ = in_chunks(pool, (2,), [1, 1, 0])
    want, _ = in_chunks(floats, (2,), [1, 1, 0])
    np.testing.assert_allclose(got[0][:2, 0], want[0][:2, 0], atol=2e-5)


def test_more_bits_change_logits_less():
    errors = []
    whole = jax.jit(model_of("llama").apply)(model_of("llama").params, IDS[:, :SIZE])
    exact, _ = in_chunks(empty("llama"), (0, 1, 2), [SIZE] * 3)
    for bits in (8, 4, 2):
        got, _ = in_chunks(empty("llama", bits), (0, 1, 2), [SIZE] * 3)
        np.testing.assert_allclose(got[0], whole, atol=1e-4)  # no page was full before
        errors.append(float(abs(got[2] - exact[2]).max()))
    assert 10 * errors[0] < 2 * errors[1] < errors[2]


def test_some_rows_of_a_pool_are_read_alone():
    model, ids = model_of("llama"), IDS[:2, :SIZE]
    apply = jax.jit(lambda pool, rows: model.apply(model.params, ids, pool, rows=rows))
    pool, _ = jm.pages.alloc(empty("llama"), jnp.array([3, 0, SIZE]))
    logits, pool = apply(pool, jnp.array([2, 0]))
    want, _ = read_of("llama")(empty("llama"), IDS[jnp.array([1, 2, 0]), :SIZE], [3, 0, SIZE])
    assert pool.length.tolist() == [3, 0, SIZE]
    np.testing.assert_allclose(logits[0], want[2], atol=1e-5)
    np.testing.assert_allclose(logits[1, :3], want[0, :3], atol=1e-5)
    _, same = apply(pool, jnp.array([-1, 9]))  # no rows
    assert same.length.tolist() == [3, 0, SIZE]


def test_what_cannot_be_is_refused_by_name():
    model, pool = model_of("llama"), empty("llama")
    apply = lambda *args, **options: jax.eval_shape(
        lambda: model.apply(model.params, *args, **options)
    )
    wrong = {
        "multiple of 8": lambda: jm.Pages(size=12),
        "2, 4 or 8 bits": lambda: jm.Pages(3),
        "rotate is True": lambda: jm.Pages(rotate=True),
        "window is 0": lambda: jm.Pages(window=0),
        "sinks is 4 with window None": lambda: jm.Pages(sinks=4),
        "at least 1": lambda: jm.Pages().empty(model.config, 0, 1, 1),
        "`latent`": lambda: jm.Pages().empty(
            dataclasses.replace(
                model.config, latent=dict(kv_rank=8, rope_dim=4, nope_dim=4, value_dim=8)
            ),
            1,
            1,
            1,
        ),
        "position": lambda: apply(IDS, pool, 3),
        "rows are given": lambda: apply(IDS, rows=jnp.arange(3)),
        "2 rows": lambda: apply(IDS[:2], pool),
        "4 heads of width 8, and": lambda: apply(IDS, empty("gpt2")),
        "shape": lambda: jm.pages.alloc(pool, jnp.arange(2)),
        "the blob holds": lambda: jm.pages.put(
            pool, jnp.arange(2), jm.pages.take(pool, jnp.arange(3))
        ),
    }
    for words, call in wrong.items():
        with pytest.raises((ValueError, NotImplementedError), match=words):
            call()


@pytest.mark.parametrize(("had", "bits"), [(8, 4), (8, 2), (4, 2)])
def test_codes_without_their_low_bits_are_codes_of_fewer_bits(had, bits):
    x = jax.random.normal(jax.random.key(0), (2, 3, 1, 16, 16), jnp.float32)
    page = encode_pages(x, 2 * x, had, beside=True)
    fewer = jm.pages.fewer_bits(page, bits)
    assert jax.tree.map(jnp.shape, fewer) == jax.tree.map(
        jnp.shape, encode_pages(x, 2 * x, bits, beside=True)
    )
    for old, new, axis in zip(decode_pages(page, had), decode_pages(fewer, bits), (-2, -1)):
        span = old.max(axis, keepdims=True) - old.min(axis, keepdims=True)
        bound = 2 ** (had - bits) / 2 * span / (2**had - 1) * 1.01 + 2e-3 * span
        assert (abs(new - old) <= bound + 1e-3 * abs(old)).all() and (new != old).any()


def test_a_row_of_eight_bits_goes_on_in_a_pool_of_four():
    _, pool = in_chunks(empty("llama", 8), (0, 1), [SIZE, 5, 0])
    blob = jm.pages.fewer_bits(jm.pages.take_row(pool, 0), 4)
    small, ok = jm.pages.put_row(empty("llama", 4), 2, blob)
    assert ok and small.length.tolist() == [0, 0, int(pool.length[0])]
    lower = jm.pages.fewer_bits(pool, 4)
    assert lower.table.tolist() == pool.table.tolist() and lower.options.bits == 4
    got, _ = read_of("llama")(lower, IDS[:, 16:24], [SIZE, SIZE, 0])
    want, _ = read_of("llama")(pool, IDS[:, 16:24], [SIZE, SIZE, 0])
    assert 0 < abs(got - want)[:2].max() < 0.3 * abs(want)[:2].max()
    for wrong in (lambda: jm.pages.fewer_bits(lower, 8), lambda: jm.pages.fewer_bits(lower, 4)):
        with pytest.raises(ValueError, match="fewer than the 4"):
            wrong()
    with pytest.raises(ValueError, match="expected codes"):
        jm.pages.fewer_bits(empty("llama"), 4)


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
    use = jm.pages.usage(pools[1])
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
