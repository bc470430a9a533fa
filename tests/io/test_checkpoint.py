"""One file holds any tree: arrays, containers, encoded leaves; it is replaced in one step."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_trees import CLASSES, DTYPES, Moments, Rounded, Rounding, example, rounded, same
from flax.core import FrozenDict
from jax.sharding import SingleDeviceSharding

import jaxmem as jm
from jaxmem.io import packed_bytes
from jaxmem.io.checkpoint import load, save
from jaxmem.io.manifest import known_classes


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tree.jm"


@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays_of_every_dtype_and_shape_return(path, dtype):
    shapes = [(), (0, 4), (1,), (3, 5), (2, 3, 8)]
    host = [np.random.default_rng(0).integers(0, 2, shape).astype(dtype) for shape in shapes]
    tree = {"numpy": host, "jax": [jnp.asarray(x) for x in host]}
    save(path, tree)
    same(load(path), tree)


@pytest.mark.parametrize("bits", [2, 4])
def test_every_code_of_a_sub_byte_type_returns(path, bits):
    codes = jnp.arange(-(2 ** (bits - 1)), 2 ** (bits - 1)).astype(f"int{bits}")
    save(path, codes)
    same(load(path), codes)


def test_encoded_leaves_return_without_a_template(path):
    save(path, example())
    same(load(path, classes=CLASSES), example())


CODECS = [jm.Int(4, symmetric=False), jm.Int(3, group=8), jm.Cast("float8_e4m3fn")]
CODECS += [jm.Chain((jm.LowRank(2), jm.Int(8)))]


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_what_a_codec_makes_returns(path, codec):
    params = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 24)), jnp.float32)}
    enc = jm.encode(params, jm.choose(params, {"w": codec}))
    save(path, enc)
    same(load(path), enc)
    assert path.stat().st_size <= jm.nbytes(enc) + 1024 + 1024 * len(jax.tree.leaves(enc))


def test_a_codec_itself_returns(path):
    save(path, CODECS)
    assert load(path) == CODECS


@pytest.mark.parametrize(
    "tree",
    [
        {},
        None,
        3,
        {"b": 1, "a": (True, None, "text", -0.0, float("inf"), 10**30)},
        {0: [np.float32(1.5), np.int64(-2)], 1: [[]]},
        Moments(jnp.int32(3), {"w": jnp.ones(2)}),
        FrozenDict({"layer": {"kernel": jnp.ones((2, 3))}}),
    ],
    ids=str,
)
def test_containers_and_plain_values_return(path, tree):
    save(path, tree)
    same(load(path, classes=CLASSES), tree)
    assert repr(load(path, classes=CLASSES)) == repr(tree)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_typed_random_keys_return(path, impl):
    keys = jax.random.split(jax.random.key(3, impl=impl), 4)
    save(path, {"keys": keys})
    again = load(path, shardings=SingleDeviceSharding(jax.devices()[0]))["keys"]
    assert again.dtype == keys.dtype and again.shape == (4,)
    np.testing.assert_array_equal(jax.random.key_data(again), jax.random.key_data(keys))


def test_a_tree_of_900_levels_returns_and_one_of_more_is_refused(path):
    tree = jnp.ones(2)
    for _ in range(300):
        tree = {"a": [(tree,)]}
    save(path, tree)
    assert jax.tree.structure(load(path)) == jax.tree.structure(tree)
    for _ in range(9_000):
        tree = [tree]
    with pytest.raises(ValueError, match=r"the tree of .*tree\.jm has too many levels"):
        save(path, tree)


def test_the_same_tree_gives_the_same_bytes(path):
    save(path, example())
    first = path.read_bytes()
    save(path, example())
    assert path.read_bytes() == first


@pytest.mark.parametrize("n, shape", [(1, (7, 9)), (200, (3,)), (12, (64, 257))])
def test_a_file_is_no_larger_than_its_arrays_and_the_stated_header(path, n, shape):
    tree = {f"layers/{i}/attention/kernel": rounded(i, shape) for i in range(n)}
    save(path, tree)
    size, arrays = path.stat().st_size, len(jax.tree.leaves(tree))
    assert jm.nbytes(tree) <= size <= jm.nbytes(tree) + 1024 + 1024 * arrays


def test_a_class_that_is_not_handed_over_is_an_error(path):
    save(path, example())
    with pytest.raises(ValueError, match=r"holds a Rounding at 'w/by'.*classes="):
        load(path, classes=[Rounded])


def test_a_class_with_other_fields_is_an_error(path):
    save(path, example())
    other = dataclasses.make_dataclass("Rounding", ["bits"], frozen=True)
    with pytest.raises(ValueError, match="Rounding of other fields"):
        load(path, classes=[Rounded, other])


def test_two_classes_of_one_name_are_an_error(path):
    save(path, {})
    with pytest.raises(ValueError, match="two classes named Rounding"):
        load(path, classes=[Rounding, dataclasses.make_dataclass("Rounding", [])])


def test_no_two_frozen_dataclasses_of_the_package_share_a_name():
    modules = [m for name, m in sys.modules.items() if name.split(".")[0] == "jaxmem"]
    values = {v for m in modules for v in vars(m).values() if isinstance(v, type)}
    found = [v for v in values if v in known_classes().values() and "jaxmem" in v.__module__]
    every = [v for v in values if dataclasses.is_dataclass(v) and "jaxmem." in v.__module__]
    models = "jaxmem.architectures.", "jaxmem.models."
    every = [v for v in every if not v.__module__.startswith(models)]
    assert set(found) == {v for v in every if v.__dataclass_params__.frozen} != set()


def test_a_loaded_array_lies_where_it_was_read(tmp_path, monkeypatch):
    save(tmp_path / "w.jm", {"w": jnp.arange(1000.0)})
    read, buffers = packed_bytes.read_into, []

    def read_into(file, piece, size):
        buffers.append(piece.ctypes.data)
        return read(file, piece, size)

    monkeypatch.setattr(packed_bytes, "read_into", read_into)
    assert load(tmp_path / "w.jm")["w"].unsafe_buffer_pointer() == buffers[0]
