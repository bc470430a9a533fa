"""The names of a mesh's axes, and how a batch lies over them."""

from typing import Any

from jax.sharding import AbstractMesh, Mesh

AXES = ("stage", "data", "fsdp", "sequence", "expert", "tensor")  # outermost first
ROWS, POSITIONS = ("data", "fsdp"), ("sequence",)  # what the axes of a batch lie over


def batch_spec(
    mesh: Mesh | AbstractMesh, shape: tuple[int, ...], without: tuple[str, ...] = ()
) -> tuple[Any, ...]:
    """The axes that (rows, positions, ...) of a batch lie over, where they divide it.

    Example:
        >>> import jaxmem as jm
        >>> batch_spec(jm.mesh(data=2, fsdp=2, sequence=2), (2, 64))
        (('data',), ('sequence',))
    """
    out: list[Any] = [None] * len(shape)
    for at, names in enumerate((ROWS, POSITIONS)[: len(shape)]):
        over, left = [], shape[at]
        for name in names:
            size = 1 if name in without else mesh.shape.get(name, 1)
            if size > 1 and left % size == 0:
                over, left = [*over, name], left // size
        out[at] = tuple(over) or None
    return tuple(out)
