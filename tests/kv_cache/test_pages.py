"""A pool of pages: the logits of a cache of one piece, and rows that do not touch each other."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from page_pools import CODES, CONFIGS, IDS, SIZE, empty, model_of, read_of

import jaxmem as jm
from jaxmem.kv_cache.encoded_pages import decode_pages, encode_pages

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


def test_a_cold_row_alone_falls_to_four_bits_and_gives_its_bytes_back():
    pages = jm.Pages(8, size=SIZE).empty(CONFIGS["llama"], pages=3, rows=3, most=6)
    _, pool = in_chunks(pages, (0, 1), [SIZE, 0, 0])
    _, pool = in_chunks(pool, (2,), [3, 0, 0])  # row 0 has all pages
    _, pool = in_chunks(jm.pages.grow(pool, 3), (0, 1, 2), [0, SIZE, 0])  # row 1 is in an extent
    want, _ = read_of("llama")(pool, IDS[:, 24:], [3, 0, 0])
    blob = jm.pages.fewer_bits(jm.pages.take_row(pool, 1), 4)
    cold = jm.Pages(4, size=SIZE).empty(CONFIGS["llama"], pages=3, rows=1, most=6)
    cold, ok = jm.pages.put_row(cold, 0, blob)
    rest = jm.pages.shrink(jm.pages.release(pool, jnp.array([1])))
    assert ok and rest.capacity == 3 and jm.nbytes(rest) == jm.nbytes(pages)
    got, _ = read_of("llama")(rest, IDS[:, 24:], [3, 0, 0])
    assert np.array_equal(got[0], want[0])  # row 0 keeps its 8 bits, and all of them
    assert 1.9 * jm.nbytes(cold.stores[0].keys) < jm.nbytes(pool.stores[1].keys)
