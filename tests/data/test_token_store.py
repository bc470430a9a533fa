"""Token stores: what is written is read, at any place, and damage is refused by name."""

import importlib.util
import pickle

import numpy as np
import pytest

import jaxmem as jm
from jaxmem.data import dense_codes, token_store

has_zstd = importlib.util.find_spec("zstandard") is not None
METHODS = ["deflate", pytest.param("zstd", marks=pytest.mark.skipif(not has_zstd, reason="zstd"))]


def text(count, vocabulary=50_000):
    """Ids that are as frequent as words, and repeat."""
    ids = np.random.default_rng(0).zipf(1.3, count) % vocabulary
    return np.concatenate([ids[: count // 2], ids[: count - count // 2]])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("block", [64, 4096, 1 << 20])
def test_what_is_written_is_read_at_any_place(tmp_path, method, block):
    ids = text(20_001)
    size = jm.data.write(tmp_path / "t", ids, block=block, method=method)
    store = jm.data.Tokens(tmp_path / "t")
    assert store.nbytes == size == (tmp_path / "t").stat().st_size
    for at in [slice(None), slice(0, 1), slice(63, 65), slice(4095, 8193), slice(-3, None)]:
        np.testing.assert_array_equal(store[at], ids[at])
    assert [store[0], store[-1], store[12_345]] == [ids[0], ids[-1], ids[12_345]]
    assert len(store[5:3]) == 0
    np.testing.assert_array_equal(np.concatenate(list(store.chunks(999, start=7))), ids[7:])


@pytest.mark.parametrize("ids", [[], [0], [500_000], [0, 7, 207, 208, 10_191, 490_000]])
def test_edges_of_the_vocabulary_are_read(tmp_path, ids):
    jm.data.write(tmp_path / "t", np.array(ids, np.int64))
    assert jm.data.Tokens(tmp_path / "t")[:].tolist() == ids


def test_codes_of_each_length_are_read():
    ranks = np.array([0, 207, 208, 10_191, 10_192, 489_423, 489_424, (1 << 24) - 1])
    codes = dense_codes.encode(ranks)
    assert len(codes) == 2 * (1 + 2 + 3 + 4)
    decoder = dense_codes.Decoder(np.arange(1 << 24, dtype=np.int32))
    np.testing.assert_array_equal(decoder.decode(codes, len(ranks)), ranks)


def test_an_iterable_of_arrays_and_another_store_make_the_same_file(tmp_path):
    ids = text(9_000)
    jm.data.write(tmp_path / "a", ids)
    jm.data.write(tmp_path / "b", (ids[i : i + 1000] for i in range(0, 9_000, 1000)))
    jm.data.write(tmp_path / "c", jm.data.Tokens(tmp_path / "a"))
    files = [(tmp_path / name).read_bytes() for name in "abc"]
    assert files[0] == files[1] == files[2]
    assert len(list(tmp_path.iterdir())) == 3  # nothing temporary is left


def test_a_store_takes_fewer_bytes_than_uint16_and_is_pickled_as_its_path(tmp_path):
    ids = text(100_000)
    assert jm.data.write(tmp_path / "t", ids) < 2 * len(ids) / 1.75
    store = pickle.loads(pickle.dumps(jm.data.Tokens(tmp_path / "t")))
    np.testing.assert_array_equal(store[77:99], ids[77:99])


@pytest.mark.parametrize(
    ("ids", "options", "error", "message"),
    [
        ([-1, 2], {}, ValueError, "from -1 to 2"),
        ([1 << 24], {}, ValueError, "expected 0 to 16777215"),
        ([0.5], {}, TypeError, "expected integers"),
        ([[1, 2]], {}, ValueError, "one axis"),
        ([1], {"block": 0}, TypeError, "block is 0, expected an int of at least 1"),
        ([1], {"block": 1 << 23}, ValueError, "block is 8388608"),
        ([1], {"method": "gzip"}, ValueError, "expected deflate or zstd"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, ids, options, error, message):
    with pytest.raises(error, match=message):
        jm.data.write(tmp_path / "t", np.array(ids), **options)
    assert not list(tmp_path.iterdir())


def test_a_writer_that_fails_leaves_the_file_that_was_there(tmp_path):
    jm.data.write(tmp_path / "t", np.array([1, 2]))
    with pytest.raises(ValueError):
        jm.data.write(tmp_path / "t", np.array([-1]))
    assert jm.data.Tokens(tmp_path / "t")[:].tolist() == [1, 2]
    assert [p.name for p in tmp_path.iterdir()] == ["t"]


def test_every_byte_of_a_file_is_checked(tmp_path):
    ids = text(2_000, vocabulary=300)
    jm.data.write(tmp_path / "t", ids, block=500)
    whole = (tmp_path / "t").read_bytes()
    for at in [*range(token_store.HEAD.size + 60), *range(60, len(whole), 41)]:
        damaged = bytearray(whole)
        damaged[at] ^= 0x41
        (tmp_path / "d").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"/d: it (is|has)"):
            jm.data.Tokens(tmp_path / "d")[:]


@pytest.mark.parametrize("size", [0, 7, 39, 100, -1])
def test_a_file_that_ends_early_is_refused(tmp_path, size):
    jm.data.write(tmp_path / "t", text(5_000))
    data = (tmp_path / "t").read_bytes()
    (tmp_path / "t").write_bytes(data[:size])
    with pytest.raises(ValueError, match=r"/t: it is"):
        jm.data.Tokens(tmp_path / "t")


def test_a_block_that_claims_gigabytes_takes_no_memory():
    bomb = jm.data.token_store.Compressor("deflate").compress(bytes(1 << 24))
    with pytest.raises(ValueError, match="over 4096 bytes"):
        jm.data.token_store.Compressor("deflate").decompress(bomb, 4096)


def test_a_missing_package_is_said_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    with pytest.raises(ImportError, match=r"jaxmem\[data\]"):
        jm.data.write(tmp_path / "t", np.array([1]), method="zstd")


def test_a_step_and_a_place_beyond_the_end_are_refused(tmp_path):
    jm.data.write(tmp_path / "t", np.arange(10))
    store = jm.data.Tokens(tmp_path / "t")
    with pytest.raises(ValueError, match="steps of 2"):
        store[::2]
    with pytest.raises(IndexError, match="token 10 of 10"):
        store[10]
    with pytest.raises(ValueError, match="chunks of 0"):
        next(store.chunks(0))
