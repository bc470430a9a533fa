"""Sharding constraints on arrays of a traced program, by the axes of the mesh that they are on.

A traced array knows its mesh, but not its sharding. Nothing here looks at devices.
"""

from typing import TypeVar

import jax
from jax import Array, lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ..core.arguments import takes
from ..core.traced_mesh import mesh_of
from .axes import POSITIONS, ROWS, batch_spec

T = TypeVar("T")


def whole(tree: T) -> T:
    """Inside `jit`: arrays replicated on every device, so that each of many hosts can read them."""
    mesh = mesh_of(tree)
    return tree if mesh is None else lax.with_sharding_constraint(tree, NamedSharding(mesh, P()))


@takes()
def constrain(x: Array) -> Array:
    """Activations x (B, T, ...) with rows over `data` and `fsdp`, and positions over `sequence`.

    Our models call this at the start and end of each block. Without it the partitioner may
    replicate activations: training an 8B on 256 chips then takes 16.8 GiB a device instead of
    1.65. On one device, and on a mesh without those axes, x is returned as it is.

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
    """A table (rows, width), gathered over `fsdp` if that is cheaper for `count` look-ups.

    If the table's rows are divided over `fsdp`, like those of the batch, the partitioner looks up
    every id on every device and adds the results: `count` · width numbers on each device. If that
    is more than the table, the table is gathered over `fsdp`; over `tensor` it stays divided.

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
        return table  # XLA of jax 0.12 aborts on the gradient of a look-up in a gathered table
    spec = P("tensor") if parts > 1 and table.shape[0] % parts == 0 else P()
    return lax.with_sharding_constraint(table, NamedSharding(mesh, spec))
