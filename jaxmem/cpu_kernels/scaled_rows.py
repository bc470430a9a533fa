"""scaled_rows_product: rows of x times codes of 4 bits or floats of 8, compiled, on a CPU."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .few_rows import few_rows_product

# Up to so many rows of x the library is used: experiments/speed/cpu_matvec.py.
MOST_ROWS = {"avx2": math.inf, "baseline": 8}


def scaled_rows_product(x: Array, leaf: Any, otherwise: Callable[[Array, Any], Array]) -> Array:
    """x (m, k) times the rows of an unstacked `ScaledArray` of 4 or 8 bits: (m, n) f32.

    The library decodes weights in registers, and multiplies and adds in f32. So do the products of
    XLA with decoded weights, in another order. With AVX2, codes of 4 bits meet one row of x in
    integers: each product of two numbers has an error of at most 2^-19.9 of the largest value of a
    group times the largest x. The leaf may be a `StackLayer` of a stack of them, of which no layer
    is copied.

    `otherwise(x, leaf)` is the product elsewhere (see `few_rows_product`).
    """
    return few_rows_product(_call, MOST_ROWS, x, leaf, otherwise)


def _call(x, leaf):
    whole, (leaf, layer) = leaf, leaf.in_stack()
    shape = jax.ShapeDtypeStruct((x.shape[0], leaf.fold.n), jnp.float32)
    product = jax.ffi.ffi_call("jaxmem_scaled_rows", shape, vmap_method="expand_dims")
    if leaf.scale.dtype == jnp.float16:
        scale, unit = leaf.scale, leaf.on_chip().get("unit", 1.0)
    elif layer is None:
        scale, unit = leaf.scales(), 1.0
    else:  # a stack of one layer
        scale, unit = whole.unwrapped().scales()[None], 1.0
    levels = []
    if leaf.bits == 4:
        with jax.ensure_compile_time_eval():
            levels = leaf.values(jnp.arange(16, dtype=jnp.int8))
    attributes = dict(
        levels=np.asarray(levels, np.float32),
        exponent_bits=np.int64(leaf.exponent_bits),
        group=np.int64(leaf.group if scale.shape[-2] > 1 else x.shape[1]),
        unit=np.float32(unit),
    )
    layers = () if layer is None else (layer.reshape(1, 1),)
    return product(x.astype(jnp.float32), scale, *leaf.codes, *layers, **attributes)
