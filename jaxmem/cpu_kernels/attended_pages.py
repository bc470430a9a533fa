"""attended_pages: attention of a new token of each row over its pages, compiled, on a CPU."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..kernels.dispatch import on_one_device
from .library import is_native


def attended_pages(
    q: Array,
    table: Array,
    ends: Array,
    layer: Array,
    window: Array | int,
    *stores: Array,
    beside: bool,
    scale: float,
    otherwise: Callable[..., Array],
) -> Array:
    """softmax(scale · q kᵀ) v over the last `window` tokens of each row: (B, H, 1, h).

    The library reads only these tokens. Sums are in f32, in another order than XLA's; those of a
    row depend on its own tokens alone.

    Args:
        q: queries (B, H, 1, h) f32, at the last token of each row.
        table: (B, columns) pages of each row, in order.
        ends: (B,) tokens of each row; 0 gives a result of 0.
        layer: which layer.
        window: tokens that a query sees, itself included, at least 1.
        *stores: of each extent keys, and values: (layers, pages, K, P, h) f32, K dividing H.
        beside: keys are (..., 2h) with values after the keys, and there are no values.
        scale: factor of the scores.
        otherwise: gives the result from (q, table, ends, layer, window, *stores) where there is no
            library, and in programs of several devices; it is what is differentiated.
    """
    as_int = lambda x: jnp.asarray(x, jnp.int32)

    def kernel(q, table, ends, layer, window, *stores):
        if not is_native():
            return otherwise(q, table, ends, layer, window, *stores)
        shape = jax.ShapeDtypeStruct(q.shape, jnp.float32)
        call = jax.ffi.ffi_call("jaxmem_attended_pages", shape, vmap_method="sequential")
        places, options = jnp.stack([layer, window]), {"scale": np.float32(scale)}
        return call(q, table, ends, places, *stores, beside=beside, **options)

    args = q, as_int(table), as_int(ends), as_int(layer), as_int(window), *stores
    like = jax.ShapeDtypeStruct(q.shape, jnp.float32)
    return on_one_device(kernel, otherwise, *args, platform="cpu", like=like)
