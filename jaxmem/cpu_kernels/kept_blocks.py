"""kept_blocks_product: rows of x times blocks of packed integers, by the compiled library."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .few_rows import few_rows_product

STRIP_ROWS = 32  # that divide the rows of a strip


def kept_blocks_product(x: Array, leaf: Any, otherwise: Callable[[Array, Any], Array]) -> Array:
    """x (m, k) times the rows of an unstacked `BlocksArray` of integers: (m, n) f32.

    Blocks are decoded to f32 some rows and columns at a time, so that no decoded weight is in
    memory; those that are not kept are not computed. `otherwise(x, leaf)` is the product elsewhere
    (see `few_rows_product`), also where a strip has another number of rows than a multiple of 32.
    """
    values = leaf.values.as_int_array() if hasattr(leaf.values, "as_int_array") else None
    if values is None or leaf.outputs % STRIP_ROWS or not leaf.places.size:
        return otherwise(x, leaf)
    return few_rows_product(_call, {"avx2": math.inf, "baseline": 0}, x, leaf, otherwise)


def _call(x, leaf):
    values = leaf.values.as_int_array()
    shape = jax.ShapeDtypeStruct((x.shape[0], leaf.fold.n), jnp.float32)
    product = jax.ffi.ffi_call("jaxmem_block_rows", shape, vmap_method="sequential")
    scale = values.scale
    scale = scale if scale.dtype == jnp.float16 else scale.astype(jnp.float32)
    columns = leaf.places.shape[-1] * leaf.inputs
    group = values.group if scale.shape[-2] > 1 else columns
    attributes = dict(bits=np.int64(values.bits), group=np.int64(group))
    fields = *values.codes, *(values.zero or ())
    attributes["inputs"] = np.int64(leaf.inputs)
    return product(x.astype(jnp.float32), scale, leaf.places, *fields, **attributes)
