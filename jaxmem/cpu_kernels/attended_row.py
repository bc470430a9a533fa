"""attended_row: attention of one new token over a cache where it lies, compiled, on a CPU."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..kernels.dispatch import on_one_device
from .library import is_native


def attended_row(
    q: Array,
    keys: Array,
    values: Array,
    layer: Array,
    position: Array | int,
    window: Array | int,
    *,
    scale: float,
    otherwise: Callable[..., Array],
) -> Array:
    """softmax(scale · q kᵀ) v over the last `window` tokens up to `position`: (B, H, 1, h).

    The library reads only these tokens, and copies no layer. Sums are in f32, in another order than
    XLA's.

    Args:
        q: queries (B, H, 1, h) f32.
        keys: (layers, B, K, S, h) f32, K dividing H.
        values: (layers, B, K, S, h) f32.
        layer: which layer.
        position: position of the query, below S.
        window: tokens that the query sees, itself included, at least 1.
        scale: factor of the scores.
        otherwise: gives the result from (q, keys, values, layer, position, window) where there is
            no library, and in programs of several devices; it is what is differentiated.
    """
    as_int = lambda x: jnp.asarray(x, jnp.int32)

    def kernel(q, keys, values, layer, position, window):
        if not is_native():
            return otherwise(q, keys, values, layer, position, window)
        shape = jax.ShapeDtypeStruct(q.shape, jnp.float32)
        call = jax.ffi.ffi_call("jaxmem_attended_row", shape, vmap_method="sequential")
        places = jnp.stack([layer, position, window])
        return call(q, keys, values, places, scale=np.float32(scale))

    args = q, keys, values, as_int(layer), as_int(position), as_int(window)
    like = jax.ShapeDtypeStruct(q.shape, jnp.float32)
    return on_one_device(kernel, otherwise, *args, platform="cpu", like=like)
