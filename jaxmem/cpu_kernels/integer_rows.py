"""integer_rows_product: rows of x times packed integers, by the compiled library on a CPU."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from .coded_scales import scale_attributes
from .few_rows import few_rows_product

# Up to so many rows of x the library is used: experiments/speed/cpu_matvec.py.
MOST_ROWS = {"avx2": math.inf, "baseline": 2}
# From so many rows of x on, the library is faster with 8 bits of x than with all of them.
ROUNDED_ROWS = {"avx512-vnni": 1, "avx-vnni": 1, "neon-dot": 1, "avx2": 8}
ROUNDED_BITS = (4, 5, 6, 8)  # of codes of which this is so; else it is with eight rows


def integer_rows_product(x: Array, leaf: Any, otherwise: Callable[[Array, Any], Array]) -> Array:
    """x (m, k) times the rows of an unstacked `IntArray` or `AffineArray`: (m, n) f32.

    The leaf may be a `StackLayer` of a stack of them, of which no layer is copied, and its scales
    may be codes (see `coded_scales`).

    The library rounds each row of x to fixed point, in steps of a power of two of at most
    max |x| · 2^-19.9. All sums of a group, or of some hundred columns of it, are exact. So |error|
    ≤ max |x| · 2^-20.9 · Σ |w|, plus the rounding of f32 sums over the groups. A row with an
    infinity or NaN gives NaN. Where many rows meet decoded weights, all is in f32.

    `otherwise(x, leaf)` is the product elsewhere (see `few_rows_product`).
    """
    return few_rows_product(_call, MOST_ROWS, x, leaf, otherwise)


def rounded_rows_product(x: Array, leaf: Any, otherwise: Callable[[Array, Any], Array]) -> Array:
    """`integer_rows_product` of x (m, k) f32 rounded to int8, with a range for each row.

    The codes of x are those of `Dynamic`. Sums of products of codes are exact; so the error is that
    of rounding x, plus that of f32 sums over the groups.
    `otherwise(x, leaf)` is the product elsewhere, and of fewer than `ROUNDED_ROWS` rows.
    """
    most_rows = {"avx512-vnni": math.inf, "avx2": math.inf, "baseline": 0}
    call = functools.partial(_call, rounds=True)
    least_rows = ROUNDED_ROWS if _stored(leaf)[0].bits in ROUNDED_BITS else {"avx2": 8}
    return few_rows_product(call, most_rows, x, leaf, otherwise, least_rows=least_rows)


def kept_rows_product(x: Array, leaf: Any, otherwise: Callable[[Array, Any], Array]) -> Array:
    """x (m, k) times the rows of an unstacked 2:4 `NMArray`: (m, n) f32, as `integer_rows_product`.

    The kept values are packed integers of 4 or 8 bits without zero points, with one scale a row or
    for an even number of kept values.
    """
    call = lambda x, leaf: _call(x, leaf.values.as_int_array(), leaf.codes)
    return few_rows_product(call, MOST_ROWS, x, leaf, otherwise)


def _stored(leaf):
    """(the leaf of integers whose arrays the library takes, the layer of a stack or None)."""
    leaf, layer = leaf.in_stack()
    return (leaf.coded() if hasattr(leaf, "coded") else leaf), layer


def _call(x, leaf, patterns=(), rounds=False):
    """The library's product; `patterns` are the bit fields of the patterns if 2:4 are kept."""
    leaf, layer = _stored(leaf)
    shape = jax.ShapeDtypeStruct((x.shape[0], leaf.scale.shape[-1]), jnp.float32)
    product = jax.ffi.ffi_call("jaxmem_integer_rows", shape, vmap_method="expand_dims")
    group = leaf.group * (2 if patterns else 1) if leaf.scale.shape[-2] > 1 else x.shape[1]
    attributes = dict(bits=np.int64(leaf.bits), group=np.int64(group), is_kept=bool(patterns))
    attributes |= scale_attributes(leaf)
    fields = *leaf.codes, *(getattr(leaf, "zero", None) or ()), *patterns
    layers = () if layer is None else (layer.reshape(1, 1),)
    scale, low = leaf.scale, getattr(leaf, "low", None)
    if attributes["scale_bits"]:
        numbers = [scale] if low is None else [scale, low]
        scale, *lows = (a.scale for a in numbers)
        fields = *fields, *lows, *(field for a in numbers for field in a.codes)
    else:
        all_half = {a.dtype for a in (scale, low) if a is not None} == {jnp.dtype(jnp.float16)}
        dtype = jnp.float16 if all_half else jnp.float32
        scale, fields = scale.astype(dtype), fields if low is None else (*fields, low.astype(dtype))
    attributes |= dict(has_low=low is not None, in_stack=bool(layers), rounds=rounds)
    return product(x.astype(jnp.float32), scale, *fields, *layers, **attributes)
