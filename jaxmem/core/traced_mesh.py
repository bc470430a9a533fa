"""The mesh of traced arrays, and shapes of encoded leaves on that mesh."""

from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P


def mesh_of(tree: Any) -> AbstractMesh | None:
    """The mesh of Auto axes that the arrays of a tree are placed on; None for one device.

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
    """The shape and dtype that an encoded leaf stands for, replicated on the mesh of its arrays.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> stand_in(jm.Int(4).encode(jnp.ones((8, 16))))
        ShapeDtypeStruct(shape=(8, 16), dtype=float32)
    """
    mesh = mesh_of(x)
    sharding = None if mesh is None else NamedSharding(mesh, P())
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
