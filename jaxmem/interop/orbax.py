"""Save, Restore: a tree with encoded leaves as an item of your own orbax `CheckpointManager`.

A step holds the arrays of the tree as orbax stores any array, and beside them, as orbax's custom
metadata, the manifest: the JSON of the tree, with the class and static fields of each leaf. So
`Restore` needs no template, and no class is unpickled or imported because a checkpoint names it.
A template works without this module: what `ocp.args.StandardSave(encoded)` wrote,
`ocp.args.StandardRestore(jax.eval_shape(lambda: encoded))` restores.

The store of this library, `jm.save`, is no orbax checkpoint: orbax 0.12.8 returned some 20 of 80
single altered bytes as data, took up to twice the bytes of a tree to restore it, and its directory
of many files cannot be replaced by one rename. Use orbax for numbered steps, `max_to_keep`, and
saves in the background; use `jm.save` for one file of which every byte is checked.
"""

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from ..io.manifest import describe, known_classes, named_dtype, rebuild

FORMAT = 1
# Orbax refuses these dtypes; every number of theirs is exact in the dtype that is stored.
STORED_AS = {"uint2": "uint8", "uint4": "uint8", "float8_e4m3": "float16"}


class Handler(ocp.StandardCheckpointHandler):
    """Writes and reads what `Save` and `Restore` say; orbax finds this handler by their classes."""

    async def async_save(self, directory: Any, args: "Save") -> Any:
        """Writes the arrays of `args.tree`, and the manifest as orbax's custom metadata."""
        arrays: list[np.ndarray | jax.Array] = []
        node = describe(args.tree, arrays)
        keys = _keys(args.tree, arrays)
        entries = [
            {
                "key": key,
                "dtype": x.dtype.name,
                "shape": x.shape,
                "numpy": isinstance(x, np.ndarray),
            }
            for key, x in zip(keys, arrays)
        ]
        manifest = {"format": FORMAT, "tree": node, "arrays": entries}
        # Orbax saves neither an array of no elements nor a tree of no arrays.
        items = {key: _in_stored_dtype(x) for key, x in zip(keys, arrays) if x.size}
        standard = ocp.args.StandardSave(
            items or {"no_arrays": np.zeros(1, np.uint8)}, custom_metadata={"jaxmem": manifest}
        )
        return await super().async_save(directory, args=standard)

    def restore(self, directory: Any, args: "Restore | None" = None) -> Any:
        """The tree that the manifest describes, with the arrays that orbax reads."""
        args = args or Restore()
        manifest = (self.metadata(directory).custom_metadata or {}).get("jaxmem")
        try:
            known = known_classes(args.classes)
            entries, shapes = _read_manifest(manifest)
            tree = rebuild(manifest["tree"], shapes, known)
            shardings = _shardings_of(shapes, tree, args.shardings)
            targets = {
                entry["key"]: _target(shape, sharding, entry["numpy"])
                for entry, shape, sharding in zip(entries, shapes, shardings)
            }
        except ValueError as error:
            raise ValueError(f"cannot restore {directory}: {error}") from error
        restored = {key: x for key, x in targets.items() if x.size}
        if restored:
            default = jax.sharding.SingleDeviceSharding(jax.devices()[0])
            standard = ocp.args.StandardRestore(restored, fallback_sharding=default)
            restored = super().restore(directory, args=standard)
        arrays = [
            _in_saved_dtype(restored.get(key, target), shape.dtype, sharding)
            for (key, target), shape, sharding in zip(targets.items(), shapes, shardings)
        ]
        return rebuild(manifest["tree"], arrays, known)


@ocp.args.register_with_handler(Handler, for_save=True)
@dataclasses.dataclass
class Save(ocp.args.CheckpointArgs):
    """Says to a `CheckpointManager` what to save: any tree that `jm.save` takes.

    Example:
        >>> import tempfile, jax.numpy as jnp, jaxmem as jm, orbax.checkpoint as ocp
        >>> encoded = {"w": jm.Int(4, group=16).encode(jnp.ones((32, 8)))}
        >>> with tempfile.TemporaryDirectory() as folder, ocp.CheckpointManager(folder) as manager:
        ...     saved = manager.save(7, args=jm.interop.orbax.Save(encoded))
        ...     restored = manager.restore(7, args=jm.interop.orbax.Restore())
        >>> type(restored["w"]).__name__, restored["w"].shape, restored["w"].group
        ('IntArray', (32, 8), 16)

    Raises:
        TypeError: the tree holds something else; the message says where.
    """

    tree: Any

    def __post_init__(self):
        describe(self.tree, [])  # an error inside orbax would leave its threads waiting


@ocp.args.register_with_handler(Handler, for_restore=True)
@dataclasses.dataclass
class Restore(ocp.args.CheckpointArgs):
    """Says to a `CheckpointManager` how to restore what `Save` saved; no template is needed.

    Args:
        classes: your own dataclasses and named tuples that the tree holds.
        shardings: one `jax.sharding.Sharding`, a tree of them that fits the saved tree or a prefix
            of it, or a function that makes one of the tree of shapes, such as
            `lambda tree: jm.shardings(tree, mesh, rules)`. Without it, each array returns to the
            devices that it was saved from, or to the default device where these are not there.

    Raises:
        ValueError: `Save` did not write the checkpoint; it names a class that is not known; or it
            holds a 64-bit array while `jax_enable_x64` is off. The message names the directory.

    Example:
        >>> import tempfile, jax.numpy as jnp, jaxmem as jm, orbax.checkpoint as ocp
        >>> from jax.sharding import PartitionSpec as P
        >>> place = lambda tree: jm.shardings(tree, jm.mesh(fsdp=2), {"w": P("fsdp")})
        >>> with tempfile.TemporaryDirectory() as folder, ocp.CheckpointManager(folder) as manager:
        ...     saved = manager.save(7, args=jm.interop.orbax.Save({"w": jnp.ones((8, 4))}))
        ...     tree = manager.restore(7, args=jm.interop.orbax.Restore(shardings=place))
        >>> tree["w"].addressable_shards[0].data.shape
        (4, 4)
    """

    classes: Iterable[type] = ()
    shardings: Any = None


def _keys(tree: Any, arrays: list) -> list[str]:
    """The key of each array in orbax's tree: its number, which makes it unique, and its path."""
    paths = {
        id(x): jax.tree_util.keystr(path, simple=True, separator=".")
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }
    keys = [f"{i}.{paths.get(id(x), '')}" for i, x in enumerate(arrays)]
    return [re.sub(r"[^a-zA-Z0-9_.-]", "_", key).rstrip(".") for key in keys]


def _in_stored_dtype(x: np.ndarray | jax.Array) -> np.ndarray | jax.Array:
    return x.astype(STORED_AS[x.dtype.name]) if x.dtype.name in STORED_AS else x


def _read_manifest(manifest: dict | None) -> tuple[list[dict], list[jax.ShapeDtypeStruct]]:
    """The manifest's entry for each array, and the array's shape and dtype."""
    if manifest is None:
        raise ValueError(
            "it has no manifest, so jaxmem's Save did not write it; restore it into shapes with "
            "ocp.args.StandardRestore(jax.eval_shape(...))"
        )
    if manifest["format"] != FORMAT:
        raise ValueError(f"it has format {manifest['format']}, this jaxmem reads {FORMAT}")
    entries = manifest["arrays"]
    return entries, [
        jax.ShapeDtypeStruct(tuple(entry["shape"]), named_dtype(entry["dtype"]))
        for entry in entries
    ]


def _shardings_of(shapes: list, tree: Any, shardings: Any) -> list[jax.sharding.Sharding | None]:
    """The sharding of each of `shapes`, the arrays of `tree`, from the argument of `Restore`."""
    if shardings is None:
        return [None] * len(shapes)
    shardings = shardings(tree) if callable(shardings) else shardings
    leaves = jax.tree.leaves(jax.tree.broadcast(shardings, tree))
    by_id = {id(x): sharding for x, sharding in zip(jax.tree.leaves(tree), leaves)}
    return [by_id.get(id(shape)) for shape in shapes]


def _target(
    shape: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding | None, is_numpy: bool
) -> np.ndarray | jax.ShapeDtypeStruct:
    """What says to orbax how to restore an array: as NumPy's, or as JAX's with a sharding."""
    stored = named_dtype(STORED_AS.get(shape.dtype.name, shape.dtype.name))
    if is_numpy and sharding is None:
        return np.broadcast_to(np.zeros((), stored), shape.shape)  # takes no memory
    if jax.dtypes.canonicalize_dtype(shape.dtype) != shape.dtype:
        raise ValueError(f"it holds an array of {shape.dtype}; set jax_enable_x64 to restore it")
    return jax.ShapeDtypeStruct(shape.shape, stored, sharding=sharding)


def _in_saved_dtype(
    x: np.ndarray | jax.Array | jax.ShapeDtypeStruct,
    dtype: np.dtype,
    sharding: jax.sharding.Sharding | None,
) -> np.ndarray | jax.Array:
    """The restored array in the dtype it was saved in; a target without elements is made here."""
    if isinstance(x, jax.ShapeDtypeStruct):
        return jax.device_put(jnp.zeros(x.shape, dtype), sharding)
    if x.dtype == dtype:
        return x
    return jax.device_put(x.astype(dtype), sharding) if sharding else x.astype(dtype)
