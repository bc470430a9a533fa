"""One file, every byte of it checked, replaced in one step."""

import dataclasses
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tracemalloc
import zlib
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.core import FrozenDict
from flax.training.train_state import TrainState
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

import jaxmem as jm
from jaxmem.architectures import gpt2
from jaxmem.io import packed_bytes
from jaxmem.io.checkpoint import load, save
from jaxmem.io.checkpoint_header import HEAD
from jaxmem.io.manifest import known_classes

MESH = [("a", None), (None, "b"), ("b", "a"), (("a", "b"), None), (None, None)]
ROOT = pathlib.Path(__file__).parents[2]
DTYPES = ["bool", "int2", "int4", "int8", "int16", "int32", "uint2", "uint4", "uint8", "uint32"]
DTYPES += ["float4_e2m1fn", "float8_e4m3fn", "float8_e5m2", "float16", "bfloat16", "float32"]


@dataclasses.dataclass(frozen=True)
class Rounding:
    """A codec, as a static field."""

    bits: int = 4
    group: int | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rounded(jm.Encoded):
    q: Any
    scales: tuple
    zero: Any
    dtype: Any = dataclasses.field(metadata=dict(static=True))
    by: Rounding = dataclasses.field(metadata=dict(static=True), default=Rounding())
    axes: tuple[int, ...] = dataclasses.field(metadata=dict(static=True), default=(-2,))
    shape = property(lambda self: self.q.shape)

    def decode(self):
        return self.q.astype(self.dtype)

    def astype(self, dtype):
        return dataclasses.replace(self, dtype=jnp.dtype(dtype))


class Moments(NamedTuple):
    count: Any
    mu: Any


CLASSES = [Rounded, Rounding, Moments]


def rounded(seed=0, shape=(3, 4, 5)):
    q = jnp.asarray(np.random.default_rng(seed).integers(-8, 8, shape).astype("int4"))
    scales = (jnp.ones(shape[-1], jnp.float16), jnp.ones(3, jnp.bfloat16))
    return Rounded(q, scales, None, jnp.dtype("float32"), Rounding(4, group=2))


def nested():
    return Rounded(rounded(1), (), rounded(2), jnp.dtype("bfloat16"), Rounding(2), axes=(0, 1))


def example():
    return {
        "w": rounded(),
        "b": np.arange(5, dtype=np.int16),
        "step": 7,
        "none": None,
        "list": [nested(), 1.5],
    }


def same(a, b):
    """Equal structure (static fields with it), dtypes and bits."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    is_key = lambda x: isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    numbers = lambda x: np.asarray(jax.random.key_data(x) if is_key(x) else x)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
        assert type(x) is type(y)
        assert numbers(x).dtype == numbers(y).dtype
        np.testing.assert_array_equal(numbers(x), numbers(y))


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


def test_a_linen_model_returns(path):
    params = nn.Dense(3).init(jax.random.key(0), jnp.ones((1, 2)))
    save(path, params)
    same(load(path), params)


def test_an_nnx_state_returns_with_encoded_weights(path):
    linear = lambda seed: nnx.Linear(2, 2, rngs=nnx.Rngs(seed))
    state = nnx.state(nnx.Sequential(linear(0), linear(1)))
    state["layers"][0]["kernel"] = nnx.Param(rounded())
    save(path, state)
    same(load(path, classes=CLASSES), state)


NNX_KINDS = [c for c in vars(nnx).values() if isinstance(c, type) and issubclass(c, nnx.Variable)]


class Frozen(nnx.Variable):
    """A kind of variable that a user made."""


@pytest.mark.parametrize("kind", [*NNX_KINDS, Frozen])
def test_every_kind_of_nnx_variable_returns(path, kind):
    state = nnx.State({"w": kind(jnp.ones(2)), "deep": {0: kind({"a": jnp.zeros(1)}, tag="x")}})
    save(path, state)
    again = load(path, classes=[Frozen])
    same(again, state)
    assert type(again["w"]) is kind and again["deep"][0].get_metadata()["tag"] == "x"


def test_the_state_of_an_nnx_optimizer_returns(path):
    model = nnx.Sequential(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(1)))
    for tree in (
        nnx.state(nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)),
        nnx.state(model),
    ):
        save(path, tree)
        same(load(path), tree)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_typed_random_keys_return(path, impl):
    keys = jax.random.split(jax.random.key(3, impl=impl), 4)
    save(path, {"keys": keys})
    again = load(path, shardings=SingleDeviceSharding(jax.devices()[0]))["keys"]
    assert again.dtype == keys.dtype and again.shape == (4,)
    np.testing.assert_array_equal(jax.random.key_data(again), jax.random.key_data(keys))


def test_a_train_state_returns_with_the_functions_that_the_caller_gives_back(path):
    model, tx, x = nn.Dense(3), optax.adam(1e-3), jnp.ones((1, 2))
    params = model.init(jax.random.key(0), x)["params"]
    state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)
    save(path, state.replace(params=jm.encode(params, {"kernel": jm.Int(8)})))
    functions = {"apply_fn": model.apply, "tx": tx}
    again = load(path, functions=functions)
    assert jm.is_encoded(again.params["kernel"]) and again.tx is tx and again.step == 0
    assert jm.lift(again.apply_fn)({"params": again.params}, x).shape == (1, 3)
    with pytest.raises(ValueError, match=r"function .*Module.apply at 'apply_fn'.*functions={'app"):
        load(path)
    with pytest.raises(ValueError, match="nothing at 'opt', a path of functions"):
        load(path, functions=functions | {"opt": tx})


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


@pytest.mark.parametrize("dtype", ["float32", "int4"])
@pytest.mark.parametrize("before", MESH)
def test_sharded_arrays_return_on_any_sharding(path, dtype, before):
    mesh = jax.make_mesh((4, 2), ("a", "b"))
    x = np.arange(8 * 12).reshape(8, 12).astype(np.int8).astype(dtype)
    save(path, {"x": jax.device_put(x, NamedSharding(mesh, PartitionSpec(*before)))})
    assert path.stat().st_size <= jm.nbytes(x) + 2048 + 8 * 128
    places = [NamedSharding(mesh, PartitionSpec(*after)) for after in MESH]
    for place in [*places, SingleDeviceSharding(jax.devices()[0])]:
        y = load(path, shardings={"x": place})["x"]
        np.testing.assert_array_equal(np.asarray(y), x)
        assert y.sharding == place
    np.testing.assert_array_equal(np.asarray(load(path)["x"]), x)


def test_shardings_may_be_one_for_all_or_a_tree(path):
    save(path, tree := example())
    other = SingleDeviceSharding(jax.devices()[3])
    for shardings in (other, jax.tree.map(lambda _: other, tree)):
        back = load(path, classes=CLASSES, shardings=shardings)
        assert back["w"].q.sharding == back["b"].sharding == other


def test_one_flipped_bit_anywhere_is_an_error(path):
    save(path, tree := {"w": rounded()})
    good = path.read_bytes()
    for i in range(len(good)):
        path.write_bytes(good[:i] + bytes([good[i] ^ 1 << i % 8]) + good[i + 1 :])
        with pytest.raises(ValueError, match=r"cannot load .*tree\.jm: it "):
            load(path, classes=CLASSES)
    path.write_bytes(good)
    same(load(path, classes=CLASSES), tree)


def test_a_truncated_or_longer_file_is_an_error(path):
    save(path, {"w": rounded()})
    good = path.read_bytes()
    for bad in [good[:i] for i in range(len(good))] + [good + b"\0", good + good]:
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=r"cannot load .*tree\.jm: it is"):
            load(path, classes=CLASSES)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89jaxmem\n" + b"\xff" * 90, b"\0" * 99])
def test_a_foreign_file_is_an_error_and_is_left_alone(path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot load .*tree\.jm: it is"):
        load(path)
    assert path.read_bytes() == content


def test_a_directory_is_an_error_and_is_left_alone(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is a directory"):
        load(tmp_path)
    with pytest.raises(ValueError, match="is a directory"):
        save(tmp_path, {})
    assert [f.name for f in tmp_path.iterdir()] == ["file"]


def test_a_missing_file_is_named(path):
    with pytest.raises(FileNotFoundError, match=r"tree\.jm"):
        load(path)


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


@pytest.mark.parametrize(
    "leaf",
    [
        object(),
        {1, 2},
        np.array(["a"]),
        jax.ShapeDtypeStruct((1,), "f4"),
        gpt2.Config(vocab=64, width=32, layers=2, heads=4),
    ],
)
def test_what_cannot_be_saved_is_named_and_the_old_file_stays(path, leaf):
    save(path, {"old": 1})
    with pytest.raises(TypeError, match="cannot save 'layers/0/w'"):
        save(path, {"layers": [{"w": leaf}]})
    assert load(path) == {"old": 1}


def test_a_save_that_fails_half_way_leaves_the_old_file_and_nothing_else(path):
    save(path, {"old": 1})
    gone = jnp.ones(3)
    gone.delete()
    with pytest.raises(RuntimeError, match="deleted"):
        save(path, {"a": jnp.ones(1000), "b": gone})
    assert load(path) == {"old": 1}
    assert [f.name for f in path.parent.iterdir()] == [path.name]


def test_what_a_killed_save_left_is_removed_by_the_next(path):
    left = path.with_name(f".{path.name}.0badcafe.tmp")
    left.write_bytes(b"half")
    save(path, {"new": 1})
    assert not left.exists() and load(path) == {"new": 1}


def test_64_bit_arrays_ask_for_x64(path):
    with jax.enable_x64(True):
        save(path, jnp.arange(3.0, dtype=jnp.float64))
        assert load(path).dtype == jnp.float64
    with pytest.raises(ValueError, match="jax_enable_x64"):
        load(path)


# Forks a process per point, so that jax is imported once; the kernel ends each at its point.
KILL = """
import os, resource, signal, sys
import numpy as np
import optax
from jaxmem.io.checkpoint import save
folder, points = sys.argv[1], sys.argv[2:]
kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
for point in points:
    if os.fork() == 0:
        if point.isdigit():
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(point), int(point)))
        event = {"before": "os.rename", "after": "open"}.get(point)
        late = lambda name, args: "before" in point or os.path.isdir(args[0])
        sys.addaudithook(lambda name, args: kill() if name == event and late(name, args) else None)
        save(f"{folder}/{point}.jm", np.full(300_000, 2, np.uint8))
        os._exit(0)
    print(os.WTERMSIG(os.wait()[1]))
"""
POINTS = ["0", "10", "150000", "299000", "before", "after"]


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    for point in POINTS:
        save(folder / f"{point}.jm", np.full(300_000, 1, np.uint8))
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", KILL, str(folder), *POINTS]
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return folder, dict(zip(POINTS, map(int, run.stdout.split())))


@pytest.mark.parametrize("point", POINTS)
def test_a_save_killed_at_any_point_leaves_the_old_file_or_the_new(killed, point):
    folder, signals = killed
    assert signals[point] in (signal.SIGKILL, signal.SIGXFSZ)
    tree = np.full(300_000, 2 if point == "after" else 1, np.uint8)
    np.testing.assert_array_equal(load(folder / f"{point}.jm"), tree)


TOGETHER = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from jaxmem.io.checkpoint import load, save
jax.distributed.initialize(sys.argv[2], 2, int(sys.argv[3]))
mesh = jax.make_mesh((4,), ("d",))
x = np.arange(64, dtype=np.int8).reshape(8, 8)
put = lambda spec: jax.make_array_from_callback(x.shape, NamedSharding(mesh, spec), lambda i: x[i])
save(sys.argv[1], {"a": put(P("d")), "b": put(P()), "c": put(P(None, "d")), "n": x})
there = NamedSharding(mesh, P(None, "d"))
for y in load(sys.argv[1], shardings=there).values():
    assert y.sharding == there
    assert all((np.asarray(s.data) == x[s.index]).all() for s in y.addressable_shards)
"""


@pytest.mark.slow
def test_two_processes_write_one_file_together(path):
    with socket.socket() as s:
        s.bind(("localhost", 0))
        address = f"localhost:{s.getsockname()[1]}"
    flags = "--xla_force_host_platform_device_count=2"
    env = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": flags}
    command = lambda i: [sys.executable, "-c", TOGETHER, str(path), address, str(i)]
    workers = [subprocess.Popen(command(i), env=env) for i in range(2)]
    assert [w.wait(120) for w in workers] == [0, 0]
    for y in load(path).values():
        np.testing.assert_array_equal(np.asarray(y), np.arange(64).reshape(8, 8))


def test_the_state_of_an_optimizer_returns(path):
    state = optax.adamw(1e-3).init({"w": jnp.ones((4, 8))})
    save(path, state)
    same(load(path), state)


def test_shardings_are_made_from_the_shapes_in_the_file(path):
    enc = {"w": jm.Int(4, group=8).encode(jnp.ones((16, 32))), "step": 3}
    save(path, enc)
    mesh, rules = jm.mesh(fsdp=8), {"w": PartitionSpec(None, "fsdp")}
    found = load(path, shardings=lambda tree: jm.shardings(tree, mesh, rules))
    assert found["step"] == 3 and found["w"].codes[0].sharding.spec == PartitionSpec("fsdp", None)
    assert found["w"].scale.addressable_shards[0].data.shape == (2, 4)


def test_a_loaded_array_lies_where_it_was_read(tmp_path, monkeypatch):
    save(tmp_path / "w.jm", {"w": jnp.arange(1000.0)})
    read, buffers = packed_bytes.read_into, []

    def read_into(file, piece, size):
        buffers.append(piece.ctypes.data)
        return read(file, piece, size)

    monkeypatch.setattr(packed_bytes, "read_into", read_into)
    assert load(tmp_path / "w.jm")["w"].unsafe_buffer_pointer() == buffers[0]
