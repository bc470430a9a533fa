"""The names of a mesh's axes, and the axes that a batch is divided over."""

from typing import Any

from jax.sharding import AbstractMesh, Mesh

AXES = ("stage", "data", "fsdp", "sequence", "expert", "tensor")  # outermost first
ROWS, POSITIONS = ("data", "fsdp"), ("sequence",)  # axes that divide a batch (rows, positions)


def batch_spec(
    mesh: Mesh | AbstractMesh, shape: tuple[int, ...], without: tuple[str, ...] = ()
) -> tuple[Any, ...]:
    """For each axis of a batch (rows, positions, ...), the mesh axes that it is divided over.

    An axis of the mesh is left out if it does not divide the batch, or if it is in `without`.

    Example:
        >>> import jaxmem as jm
        >>> batch_spec(jm.mesh(data=2, fsdp=2, sequence=2), (2, 64))
        (('data',), ('sequence',))
    """
    out: list[Any] = [None] * len(shape)
    for axis, names in enumerate((ROWS, POSITIONS)[: len(shape)]):
        over, shard_size = [], shape[axis]
        for name in names:
            size = 1 if name in without else mesh.shape.get(name, 1)
            if size > 1 and shard_size % size == 0:
                over, shard_size = [*over, name], shard_size // size
        out[axis] = tuple(over) or None
    return tuple(out)
