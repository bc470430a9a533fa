"""The axes of a mesh, and which mesh an array is seen on while a program is traced.

Nothing here looks at devices: a traced array knows the mesh it lies on, not how it lies.
"""

from typing import Any, TypeVar

import jax
from jax import Array, lax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

T = TypeVar("T")
AXES = ("stage", "data", "fsdp", "sequence", "expert", "tensor")  # outermost first
ROWS, POSITIONS = ("data", "fsdp"), ("sequence",)  # what the axes of a batch lie over


def mesh_of(tree: Any) -> AbstractMesh | None:
    """The mesh of Auto axes that the arrays of a tree lie on; None for one device.

    Example:
        >>> import jax.numpy as jnp
        >>> mesh_of(jnp.ones(3)) is None
        True
    """
    for x in jax.tree.leaves(tree):
        mesh = getattr(getattr(jax.typeof(x), "sharding", None), "mesh", None)
        if mesh is not None and not mesh.empty and mesh.size > 1:
            return mesh if all(kind == AxisType.Auto for kind in mesh.axis_types) else None
    return None


def stand_in(x: Any) -> jax.ShapeDtypeStruct:
    """The shape that an encoded leaf stands for, on the mesh of its arrays."""
    mesh = mesh_of(x)
    where = None if mesh is None else NamedSharding(mesh, P())
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)


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


def whole(tree: T) -> T:
    """Arrays on every device, as a host of many must have them to read them; inside `jit`."""
    mesh = mesh_of(tree)
    return tree if mesh is None else lax.with_sharding_constraint(tree, NamedSharding(mesh, P()))


def constrain(x: Array) -> Array:
    """Activations (B, T, ...) where their rows and positions lie: what blocks give and take.

    Without this the partitioner may replicate them: training an 8B on 256 chips then takes 16.8
    GiB a device instead of 1.65. On one device, and on a mesh without the axes `ROWS` and
    `POSITIONS`, it is x.

    Example:
        >>> import jax.numpy as jnp
        >>> constrain(jnp.ones((2, 3, 4))).shape
        (2, 3, 4)
    """
    mesh = mesh_of(x)
    if (
        not isinstance(x, jax.core.Tracer)
        or mesh is None
        or not {*ROWS, *POSITIONS} & {*mesh.shape}
    ):
        return x
    return lax.with_sharding_constraint(x, NamedSharding(mesh, P(*batch_spec(mesh, x.shape[:-1]))))


def looked_up(table: Array, count: int) -> Array:
    """A table (rows, width) as it should lie to be looked up `count` times, over all devices.

    Where rows lie over `fsdp`, as those of the batch do, the partitioner looks every id up on every
    device and adds up: `count` · width on each. Where that is more than the table, the table is
    gathered over `fsdp` instead, as any weight is; over `tensor` it stays.

    Example:
        >>> import jax.numpy as jnp
        >>> looked_up(jnp.ones((5, 4)), 100).shape
        (5, 4)
    """
    mesh = mesh_of(table)
    if not isinstance(table, jax.core.Tracer) or mesh is None or not {*ROWS} & {*mesh.shape}:
        return table
    parts = mesh.shape.get("tensor", 1)
    if count * parts <= table.shape[0]:
        return table
    if parts > 1 and jax.__version_info__ >= (0, 11):
        return table  # XLA of jax 0.12 aborts on the gradient of such a gather
    spec = P("tensor") if parts > 1 and table.shape[0] % parts == 0 else P()
    return lax.with_sharding_constraint(table, NamedSharding(mesh, spec))
