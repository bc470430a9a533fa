"""Sharded arrays are saved and loaded on any sharding, by one process or by two."""

import os
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_trees import CLASSES, MESH, ROOT, example
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

import jaxmem as jm
from jaxmem.io.checkpoint import load, save


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tree.jm"


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


def test_shardings_are_made_from_the_shapes_in_the_file(path):
    enc = {"w": jm.Int(4, group=8).encode(jnp.ones((16, 32))), "step": 3}
    save(path, enc)
    mesh, rules = jm.mesh(fsdp=8), {"w": PartitionSpec(None, "fsdp")}
    found = load(path, shardings=lambda tree: jm.shardings(tree, mesh, rules))
    assert found["step"] == 3 and found["w"].codes[0].sharding.spec == PartitionSpec("fsdp", None)
    assert found["w"].scale.addressable_shards[0].data.shape == (2, 4)
