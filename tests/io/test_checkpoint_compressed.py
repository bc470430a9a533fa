"""A compressed file returns every bit, and refuses what was altered or forged."""

import json
import tracemalloc
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_trees import CLASSES, DTYPES, MESH, rounded, same
from jax.sharding import NamedSharding, PartitionSpec

import jaxmem as jm
from jaxmem.io import packed_bytes
from jaxmem.io.checkpoint import load, save
from jaxmem.io.checkpoint_header import HEAD


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tree.jm"


def weights(dtype, shape=(300, 501)):
    return (np.random.default_rng(0).standard_normal(shape) * 0.02).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_compressed_arrays_of_every_dtype_and_shape_return(path, dtype):
    shapes = [(), (0, 4), (1,), (3, 5), (2, 3, 8), (70, 1001)]
    host = [np.random.default_rng(0).integers(0, 2, shape).astype(dtype) for shape in shapes]
    tree = {"numpy": host, "jax": [jnp.asarray(x) for x in host], "leaf": rounded(), "step": 7}
    save(path, tree, compress=True)
    same(load(path, classes=CLASSES), tree)


@pytest.mark.parametrize("dtype, most", [("bfloat16", 0.67), ("float32", 0.85), ("float16", 0.95)])
def test_weights_take_fewer_bytes_and_return_in_every_bit(path, dtype, most):
    tree = {"w": weights(dtype), "odd": np.array([np.nan, -0.0, np.inf, 1e-40], dtype)}
    save(path, tree, compress=True)
    found = load(path)
    assert all(found[name].tobytes() == x.tobytes() for name, x in tree.items())
    assert path.stat().st_size < most * jm.nbytes(tree)


def test_chunks_of_a_large_array_are_joined(path, monkeypatch):
    monkeypatch.setattr(packed_bytes, "CHUNK", 1 << 12)
    for dtype in ("bfloat16", "int4", "float32"):
        tree = jnp.asarray(weights("float32", (129, 77)) * 100).astype(dtype)
        save(path, tree, compress=True)
        same(load(path), tree)


def test_compressed_shards_return_on_any_sharding(path):
    mesh = jax.make_mesh((4, 2), ("a", "b"))
    x = weights("bfloat16", (8, 120))
    save(path, jax.device_put(x, NamedSharding(mesh, PartitionSpec("a"))), compress=True)
    for spec in MESH:
        y = load(path, shardings=NamedSharding(mesh, PartitionSpec(*spec)))
        np.testing.assert_array_equal(np.asarray(y), x)


def test_a_compressed_file_that_is_altered_or_cut_is_an_error(path):
    tree = {"w": weights("bfloat16", (9, 7)), "z": np.zeros(70, np.float32)}
    save(path, tree, compress=True)
    good = path.read_bytes()
    start = HEAD.unpack(good[: HEAD.size])[1]
    at = [*range(0, start, 7), *range(start, len(good))]  # the manifest is as in any file
    bad = [good[:i] + bytes([good[i] ^ 1 << i % 8]) + good[i + 1 :] for i in at]
    for content in [*bad, *(good[:i] for i in at), good + b"\0"]:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"cannot load .*tree\.jm: it "):
            load(path)
    path.write_bytes(good)
    same(load(path), tree)


def forged(path, change):
    """A file whose manifest is changed and sealed again."""
    data = path.read_bytes()
    magic, size, _ = HEAD.unpack(data[: HEAD.size])
    manifest = json.loads(data[HEAD.size : HEAD.size + size])
    change(manifest)
    text = json.dumps(manifest).encode()
    head = HEAD.pack(magic, len(text), zlib.crc32(text))
    path.write_bytes(head + text + data[HEAD.size + size :])


@pytest.mark.parametrize("shape", [[1 << 44], [1 << 20, 1 << 20], [4_000_000]])
def test_a_bomb_is_refused_before_anything_is_allocated(path, shape):
    save(path, np.zeros(1000, np.float32), compress=True)
    forged(path, lambda m: m["arrays"][0].update(shape=shape))
    tracemalloc.start()
    with pytest.raises(ValueError, match="it is damaged"):
        load(path)
    assert tracemalloc.get_traced_memory()[1] < 20 << 20
    tracemalloc.stop()


def test_streams_that_hold_more_than_they_say_are_refused(path):
    save(path, np.zeros(100_000, np.float32), compress=True)
    forged(path, lambda m: m["arrays"][0].update(shape=[90_000]))
    with pytest.raises(ValueError, match="it is damaged"):
        load(path)


def test_a_compressed_save_that_fails_leaves_the_old_file(path):
    save(path, {"old": 1}, compress=True)
    gone = jnp.ones(3)
    gone.delete()
    with pytest.raises(RuntimeError, match="deleted"):
        save(path, {"a": jnp.ones(1000), "b": gone}, compress=True)
    assert load(path) == {"old": 1} and [f.name for f in path.parent.iterdir()] == [path.name]
