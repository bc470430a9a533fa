"""A user's own CheckpointManager saves encoded trees and restores them without a template."""

import dataclasses
import json
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from contract_codecs import CODECS
from flax import nnx
from flax.core import FrozenDict
from jax.sharding import NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

import jaxmem as jm
from jaxmem.interop.orbax import Handler, Restore, Save

pytestmark = pytest.mark.client

DTYPES = ["bool", "int2", "int4", "int8", "int32", "uint2", "uint4", "uint8", "uint32"]
DTYPES += ["float4_e2m1fn", "float8_e4m3", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu"]
DTYPES += ["float16", "bfloat16", "float32"]


class Moments(NamedTuple):
    count: Any
    mu: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Scaled(jm.Encoded):
    """A leaf of a class that jaxmem does not know."""

    codes: Any
    scale: Any
    dtype: Any = dataclasses.field(metadata=dict(static=True))
    shape = property(lambda self: self.codes.shape)

    def decode(self):
        return self.codes.astype(self.dtype) * self.scale

    def astype(self, dtype):
        return dataclasses.replace(self, dtype=jnp.dtype(dtype))


@pytest.fixture
def manager(tmp_path):
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        yield manager


def weights(*shape, dtype="float32"):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), dtype)


def params():
    plain = {"layers": {"w": weights(2, 32, 64)}, "head": weights(32, 16), "norm": weights(32)}
    plan = {"layers/w": jm.Int(4, group=16), "head": jm.Float("e4m3")}
    return jm.encode(plain, jm.choose(plain, plan))


def round_trip(manager, tree, **options):
    manager.save(0, args=Save(tree))
    return manager.restore(0, args=Restore(**options))


def assert_same(got, want):
    """Equal structure (static fields with it), classes of leaves, dtypes and values."""
    chex.assert_trees_all_equal(got, want, strict=True)
    got, want = jax.tree.leaves(got), jax.tree.leaves(want)
    assert [type(x) for x in got] == [type(x) for x in want]
    assert [np.asarray(x).dtype for x in got] == [np.asarray(x).dtype for x in want]


def test_a_leaf_of_every_codec_returns(manager):
    w = jax.ShapeDtypeStruct((3, 32, 24), jnp.bfloat16)
    shapes = {
        str(codec): jax.eval_shape(lambda w, c=codec: c.encode(w, (-2,)), w) for codec in CODECS
    }
    rng = np.random.default_rng(0)
    tree = jax.tree.map(lambda s: jnp.asarray(rng.integers(0, 2, s.shape).astype(s.dtype)), shapes)
    assert_same(round_trip(manager, tree), tree)


def test_arrays_of_every_dtype_and_shape_return_bit_for_bit(manager):
    shapes = [(), (0, 4), (3, 5), (2, 3, 8)]
    rng = np.random.default_rng(0)
    host = {d: [rng.integers(0, 2, shape).astype(d) for shape in shapes] for d in DTYPES}
    tree = {"numpy": host, "jax": jax.tree.map(jnp.asarray, host)}
    got = round_trip(manager, tree)
    chex.assert_trees_all_equal_shapes_and_dtypes(got, tree)
    assert jax.tree.map(type, got) == jax.tree.map(type, tree)
    bits = lambda x: np.asarray(x).tobytes()  # zero is no number of float8_e8m0fnu, so it is a NaN
    assert jax.tree.map(bits, got) == jax.tree.map(bits, tree)


@pytest.mark.parametrize("dtype", ["int4", "uint4", "int2", "uint2"])
def test_every_code_of_a_sub_byte_dtype_returns(manager, dtype):
    ends = jnp.iinfo(dtype)
    codes = jnp.arange(int(ends.min), int(ends.max) + 1).astype(dtype)
    assert_same(round_trip(manager, codes), codes)


@pytest.mark.parametrize(
    "tree",
    [
        {},
        None,
        3,
        weights(4),
        {"b": 1, "a": (True, None, "text", -0.0, float("inf"), 10**30)},
        {0: [np.float32(1.5), np.int64(-2)], 1: [[]]},
        {"a.b": weights(2), "a": {"b": weights(3)}, "a/b": weights(4), "ä ..": weights(5)},
        Moments(jnp.int32(3), {"w": weights(2)}),
        FrozenDict({"layer": {"kernel": weights(2, 3)}}),
        nnx.state(nnx.Linear(2, 2, rngs=nnx.Rngs(0))),
        [jm.Int(4, group=16), jm.Chain((jm.LowRank(2), jm.Int(8)))],
    ],
    ids=lambda tree: type(tree).__name__,
)
def test_containers_and_plain_values_return(manager, tree):
    got = round_trip(manager, tree, classes=[Moments])
    assert repr(got) == repr(tree)
    assert_same(got, tree)


def test_params_stand_beside_the_state_of_an_optimizer_and_other_items(manager):
    tree = params()
    trained = {"norm": tree["norm"]}
    state = optax.chain(optax.clip(1.0), optax.adamw(1e-3)).init(trained)
    args = ocp.args.Composite(
        params=Save(tree), state=Save(state), data=ocp.args.JsonSave({"seen": 5})
    )
    manager.save(3, args=args)
    got = manager.restore(
        3, args=ocp.args.Composite(params=Restore(), state=Restore(), data=ocp.args.JsonRestore())
    )
    assert_same(got.params, tree)
    assert_same(got.state, state)
    assert got.data == {"seen": 5}


def test_steps_are_saved_in_the_background_and_old_ones_deleted(tmp_path):
    options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=True)
    double = jax.jit(lambda x: 2 * x, donate_argnums=0)
    scale = jnp.ones(1000)
    with ocp.CheckpointManager(tmp_path / "run", options=options) as manager:
        for step in range(5):
            manager.save(step, args=Save(Scaled(jnp.ones(1000, "int4"), scale, np.dtype("f4"))))
            scale = double(scale)  # the array of the step that is being written
        manager.wait_until_finished()
        assert manager.all_steps() == [3, 4]
    with ocp.CheckpointManager(tmp_path / "run") as manager:  # as another process does
        got = manager.restore(manager.latest_step(), args=Restore(classes=[Scaled]))
    np.testing.assert_array_equal(got.decode(), np.full(1000, 16.0))


def test_a_new_manager_restores_without_arguments(tmp_path):
    tree = params()
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        manager.save(0, args=Save(tree))
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        assert_same(manager.restore(0), tree)


def test_a_checkpointer_without_a_manager_saves_too(tmp_path):
    with ocp.AsyncCheckpointer(Handler()) as checkpointer:
        checkpointer.save(tmp_path / "one", args=Save(params()))
    with ocp.Checkpointer(Handler()) as checkpointer:
        assert_same(checkpointer.restore(tmp_path / "one"), params())


def test_shardings_are_made_from_the_shapes_that_are_saved(manager):
    tree = params()
    rules = {"layers/w": P(None, None, "fsdp"), "head": P("fsdp")}
    got = round_trip(manager, tree, shardings=lambda t: jm.shardings(t, jm.mesh(fsdp=8), rules))
    want = jm.shardings(tree, jm.mesh(fsdp=8), rules)
    assert jax.tree.map(lambda x: x.sharding, got) == want
    assert got["layers"]["w"].scale.addressable_shards[0].data.shape == (2, 2, 8)
    assert_same(got, tree)


@pytest.mark.parametrize("dtype", ["float32", "int4", "uint4"])
def test_sharded_arrays_return_as_they_were_or_on_any_sharding(manager, dtype):
    mesh = jax.make_mesh((4, 2), ("a", "b"))
    x = jnp.arange(8 * 16).reshape(8, 16).astype("int8").astype(dtype)
    saved = jax.device_put({"x": x}, NamedSharding(mesh, P("a", "b")))
    got = round_trip(manager, saved)
    assert_same(got, {"x": x})
    assert got["x"].sharding == saved["x"].sharding
    specs = [P("b", "a"), P(None, ("a", "b")), P()]
    places = [NamedSharding(mesh, spec) for spec in specs]
    for place in [*places, SingleDeviceSharding(jax.devices()[3])]:
        for shardings in (place, {"x": place}):
            got = manager.restore(0, args=Restore(shardings=shardings))
            assert_same(got, {"x": x})
            assert got["x"].sharding == place


def test_arrays_of_devices_that_are_not_there_go_to_the_default_device(manager, tmp_path):
    tree = {"w": jax.device_put(jnp.ones(3, "int4"), jax.devices()[7])}
    manager.save(0, args=Save(tree))
    manager.wait_until_finished()
    file = tmp_path / "run/0/default/_sharding"
    assert "cpu:7" in file.read_text()
    file.write_text(file.read_text().replace("cpu:7", "tpu:7"))
    got = manager.restore(0, args=Restore())
    assert_same(got, tree)
    assert got["w"].sharding == SingleDeviceSharding(jax.devices()[0])


def test_arrays_of_numpy_and_of_no_elements_take_a_sharding(manager):
    place = SingleDeviceSharding(jax.devices()[5])
    got = round_trip(manager, {"n": np.ones(3, "f4"), "none": jnp.ones((0, 3))}, shardings=place)
    assert got["n"].sharding == got["none"].sharding == place


def test_a_sharded_leaf_of_a_model_multiplies_after_its_return(manager):
    mesh, x = jm.mesh(tensor=8), weights(3, 64)
    tree = {"w": jm.Int(8).encode(weights(64, 32))}
    sharded = jm.shard(tree, jm.shardings(tree, mesh, {"w": P(None, "tensor")}))
    got = round_trip(manager, sharded)
    assert_same(got, sharded)
    product = jax.jit(jm.lift(lambda p, x: x @ p["w"]))
    np.testing.assert_array_equal(product(got, x), product(sharded, x))


def test_what_orbax_saved_itself_is_restored_into_shapes(manager):
    tree = params() | {"int4": jnp.arange(-8, 8).astype("int4")}
    manager.save(0, args=ocp.args.StandardSave(tree))
    shapes = jax.eval_shape(lambda: tree)
    assert_same(manager.restore(0, args=ocp.args.StandardRestore(shapes)), tree)


def test_a_step_that_save_did_not_write_is_an_error(tmp_path):
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        manager.save(0, args=ocp.args.StandardSave({"w": jnp.ones(3)}))
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        message = r"cannot restore .*run/0/default: it has no manifest"
        with pytest.raises(ValueError, match=message):
            manager.restore(0, args=Restore())


def test_a_class_that_is_not_handed_over_is_an_error_with_its_path(manager):
    tree = {"layers": [Scaled(jnp.ones(3, "int4"), jnp.ones(3), np.dtype("float32"))]}
    manager.save(0, args=Save(tree))
    message = r"cannot restore .*run/0/default: it holds a Scaled at 'layers/0', .* classes="
    with pytest.raises(ValueError, match=message):
        manager.restore(0, args=Restore())
    assert_same(manager.restore(0, args=Restore(classes=[Scaled])), tree)


@pytest.mark.parametrize("name", ["subprocess.Popen", "jaxmem.Recipe", "builtins.eval"])
def test_a_checkpoint_that_names_another_class_runs_nothing(manager, tmp_path, name):
    manager.save(0, args=Save(params()))
    manager.wait_until_finished()
    file = tmp_path / "run/0/default/_METADATA"
    assert "jaxmem.IntArray" in file.read_text()
    file.write_text(file.read_text().replace("jaxmem.IntArray", name))
    with pytest.raises(ValueError, match=rf"holds a {name}.* at 'layers/w'"):
        manager.restore(0, args=Restore())


def test_what_cannot_be_saved_is_named_before_orbax_begins():
    with pytest.raises(TypeError, match="cannot save 'layers/0'"):
        Save({"layers": [object()]})


def test_64_bit_arrays_ask_for_x64(manager):
    with jax.enable_x64(True):
        manager.save(0, args=Save(jnp.arange(3.0, dtype=jnp.float64)))
        assert manager.restore(0, args=Restore()).dtype == jnp.float64
    with pytest.raises(ValueError, match="jax_enable_x64"):
        manager.restore(0, args=Restore())


def test_a_manifest_of_another_format_is_an_error(manager, tmp_path):
    manager.save(0, args=Save(params()))
    manager.wait_until_finished()
    file = tmp_path / "run/0/default/_METADATA"
    metadata = json.loads(file.read_text())
    metadata["custom_metadata"]["jaxmem"]["format"] = 9
    file.write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match="it has format 9, this jaxmem reads 1"):
        manager.restore(0, args=Restore())
