"""Bytes that the arrays of a tree take, counted from their shapes and dtypes."""

import math
from typing import Any

import jax

from .arguments import OPTIONAL_TREE, takes
from .leaf import is_array, is_encoded, is_random_key

NO_NUMBERS = tuple("OSUmM")  # kinds of NumPy's dtypes of which JAX has no arrays


@takes(tree=OPTIONAL_TREE)
def nbytes(tree: Any) -> int:
    """The bytes that the arrays of `tree` take on a device; arrays may be concrete or abstract.

    They are counted in bits, since `.nbytes` of an array of int4 counts a whole byte an element.
    A typed random key takes the bytes of its data; ints, functions, and strings and dates, also in
    arrays of NumPy, take none.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmem as jm
        >>> jm.nbytes(jax.ShapeDtypeStruct((8, 8), jnp.int4))
        32
    """
    counted = lambda x: is_array(x) and getattr(x.dtype, "kind", "") not in NO_NUMBERS
    arrays = [_numbers(x) for x in jax.tree.leaves(tree) if counted(x)]
    bits = (math.prod(x.shape) * jax.dtypes.itemsize_bits(x.dtype) for x in arrays)
    return sum(-(-b // 8) for b in bits)


def _numbers(x: Any) -> Any:
    """The array; of random keys the shape of their data."""
    return jax.eval_shape(jax.random.key_data, shape_of(x)) if is_random_key(x) else x


def device_bytes(tree: Any) -> int:
    """The bytes that the arrays of `tree` take on one device: a shard of each.

    Arrays in host memory count as 0.

    Example:
        >>> import jax.numpy as jnp
        >>> device_bytes({"w": jnp.ones((8, 8)), "b": jnp.ones(8)})
        288
    """
    total = 0
    for x in filter(is_array, jax.tree.leaves(tree)):
        sharding = getattr(x, "sharding", None)
        if getattr(sharding, "memory_kind", None) == "pinned_host":
            continue
        shape = sharding.shard_shape(x.shape) if sharding is not None else x.shape
        total += nbytes(jax.ShapeDtypeStruct(shape, x.dtype))
    return total


def shape_of(leaf: Any) -> Any:
    """The shape and dtype of an array or a lazy leaf; any other leaf itself.

    Example:
        >>> import numpy as np
        >>> shape_of(np.ones((2, 3), np.float32)), shape_of(2.0)
        (ShapeDtypeStruct(shape=(2, 3), dtype=float32), 2.0)
    """
    plain = is_array(leaf) and not is_encoded(leaf)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if plain else leaf
