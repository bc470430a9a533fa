"""Trees of arrays in the files of other tools are read, and no object of Python is."""

import flax.serialization
import h5py
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy
from flax import nnx

import jaxmem as jm
from jaxmem.interop import read_params

COUNT = 11  # the names 0, ..., 10 are not in the order of their letters
TREE = {
    "layers": {i: {"kernel": np.full((2, 3), i, np.float32)} for i in range(COUNT)},
    "head": {"bias": np.ones(3, jnp.bfloat16)},
}
FLAT = {f"layers/{i}/kernel": np.full((2, 3), i, np.float32) for i in range(COUNT)}
FLAT |= {"head/bias": np.ones(3, np.float32)}


def same(got, want=TREE):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(np.float32(a), np.float32(b)), got, want
    )


def test_msgpack_of_flax(tmp_path):
    (tmp_path / "w.msgpack").write_bytes(flax.serialization.msgpack_serialize(TREE))
    got = read_params(tmp_path / "w.msgpack")
    same(got)
    assert got["head"]["bias"].dtype == jnp.bfloat16


def test_files_of_flat_names(tmp_path):
    np.savez(tmp_path / "w.npz", **FLAT)
    dotted = {name.replace("/", "."): array for name, array in FLAT.items()}
    safetensors.numpy.save_file(dotted, tmp_path / "w.safetensors")
    with h5py.File(tmp_path / "w.h5", "w") as file:
        for name, array in FLAT.items():
            file[name] = array
        file["elsewhere"] = h5py.ExternalLink("/etc/hostname", "x")
    for name in ("w.npz", "w.safetensors", "w.h5"):
        same(read_params(tmp_path / name))


def test_the_state_of_an_nnx_module_that_orbax_saved(tmp_path):
    module = nnx.Sequential(*[nnx.Linear(2, 2, rngs=nnx.Rngs(i)) for i in range(COUNT)])
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", nnx.state(module))
    params = read_params(tmp_path / "state")
    same(params, nnx.to_pure_dict(nnx.state(module)))
    fresh = nnx.Sequential(*[nnx.Linear(2, 2, rngs=nnx.Rngs(9)) for _ in range(COUNT)])
    model = jm.models.from_flax(fresh, params, inputs=(jnp.ones((1, 2)),))
    np.testing.assert_allclose(model.apply(params, jnp.ones((1, 2))), module(jnp.ones((1, 2))))


def test_encoded_leaves_that_orbax_saved(tmp_path):
    encoded = {"w": jm.Int(4).encode(jnp.ones((32, 8)))}
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(7, args=jm.interop.orbax.Save(encoded))
    got = read_params(tmp_path / "7")
    np.testing.assert_array_equal(got["w"].decode(), encoded["w"].decode())


def pickled(path):
    np.savez(path, a=np.array([{}], object))


def texts(path):
    with h5py.File(path, "w") as file:
        file["a"] = ["text"]


def elsewhere(path):
    with h5py.File(path.with_name("x.h5"), "w") as file:
        file["x"] = np.ones(3)
    layout = h5py.VirtualLayout((3,), "f8")
    layout[:] = h5py.VirtualSource(path.with_name("x.h5"), "x", (3,))
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("a", layout)


def cut(path):
    np.savez_compressed(path, a=np.ones(99))
    path.write_bytes(path.read_bytes()[:-30])


def one_array(path):
    with path.open("wb") as file:
        np.save(file, np.ones(3))


BFLOAT16 = jnp.ones(2, jnp.bfloat16)


@pytest.mark.parametrize(
    "name, write, message",
    [
        ("w.npz", pickled, "can run any code"),
        ("w.npz", lambda path: path.write_bytes(b"PK"), "no npz of plain arrays"),
        ("w.npz", lambda path: np.savez(path, **{"a": 1, "a/b": 2}), "a level above another"),
        ("w.npz", lambda path: np.savez(path, a=BFLOAT16), r"a is of \|V2, .*no bfloat16"),
        ("w.npz", lambda path: np.savez(path, a=["text"]), "a is of <U4, expected numbers"),
        ("w.npz", cut, "no npz of plain arrays"),
        ("w.npz", one_array, "it is one array, an npy"),
        ("w.h5", elsewhere, "a lies in another file"),
        ("w.h5", texts, "a is of object"),
        ("w.h5", lambda path: path.write_bytes(b"x"), "no whole HDF5 file"),
        ("w.msgpack", lambda path: path.write_bytes(b"\xc1"), "no msgpack of flax"),
        ("w.msgpack", lambda path: path.write_bytes(b"\x81\xa1a\xa1b"), "holds a text"),
        ("w.pt", lambda path: path.write_bytes(b"PK"), "is no file of .msgpack, .npz"),
        ("w", lambda path: path.mkdir(), "no folder of arrays of orbax"),
    ],
)
def test_what_is_no_tree_of_arrays_is_one_clear_error(name, write, message, tmp_path):
    write(tmp_path / name)
    with pytest.raises(ValueError, match=message):
        read_params(tmp_path / name)
