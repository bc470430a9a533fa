"""The axes of a mesh, and which mesh an array is seen on while a program is traced.

Nothing here looks at devices: a traced array knows the mesh it lies on, not how it lies.
"""

from typing import TypeVar

import jax
from jax import Array, lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ..core.traced_mesh import mesh_of
from .axes import POSITIONS, ROWS, batch_spec

T = TypeVar("T")


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
