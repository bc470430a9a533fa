"""trained_product: x · w whose backward pass reads the codes that the product multiplied.

y = x̂ ŵᵀ with x̂ = (q − zero) · step and ŵ = scale · codes. Its gradients go straight through both
roundings (Bengio et al., 2013): dx = g ŵ and dw = gᵀ x̂, in floats or by products of integers.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ..core.matrix_leaf import MatrixLeafWrapper
from ..core.random_bits import hashed_bits
from .float16_scales import divisor
from .packing import unpack

BACKWARD = ("codes", "int8")
MOST_SUMMED = (2**31 - 1) // 2**14  # products of two codes whose sum int32 holds


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainedArray(MatrixLeafWrapper):
    """A leaf that rounds inputs, whose products have gradients for the matrix it was made of.

    `inner` is a `DynamicArray`, which knows the codes of its inputs, and holds the encoded weight.
    """

    inner: Any
    matrix: Array  # (*stack, n, k), which is only differentiated
    backward: str = dataclasses.field(metadata=dict(static=True))

    def matmul(self, x, precision=None):
        return _product(x, self.matrix, self.inner, self.backward, precision)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _product(x, matrix, leaf, backward, precision):
    """x (m, k) . rows^T of an unstacked `DynamicArray`: (m, n) f32."""
    return leaf.matmul(x, precision)


def _forward(x, matrix, leaf, backward, precision):
    dtypes = jnp.zeros(0, x.dtype), jnp.zeros(0, matrix.dtype)
    codes = leaf.input_codes(x.astype(jnp.float32))
    return leaf.matmul(x, precision), (codes, leaf, dtypes)


def _backward(backward, precision, kept, slope):
    (q, zero, step), leaf, dtypes = kept
    in_integers = backward == "int8" and max(slope.shape) <= MOST_SUMMED
    by_x, by_w = (_integer_slopes if in_integers else _float_slopes)(
        slope, q, zero, step, leaf.inner, dtypes[0].dtype, precision
    )
    none = jax.tree.map(_no_slope, leaf)
    return by_x.astype(dtypes[0].dtype), by_w.astype(dtypes[1].dtype), none


_product.defvjp(_forward, _backward)


def _float_slopes(slope, q, zero, step, leaf, dtype, precision):
    """(dx (m, k), dw (n, k)) in f32, of operands in the dtype of x."""
    dot = functools.partial(jnp.matmul, precision=precision, preferred_element_type=jnp.float32)
    x = ((q.astype(jnp.float32) - zero) * step).astype(dtype)
    slope = slope.astype(dtype)
    return dot(slope, leaf.rows().astype(dtype)), dot(slope.T, x)


def _integer_slopes(slope, q, zero, step, leaf, dtype, precision):
    """`_float_slopes` by products of int8, of a slope that is rounded at random.

    What is multiplied along a sum has no scale there: the scales of the rows of w, and the steps of
    the rows of x, are put into the slope before it is rounded.
    """
    by_token, token_scale = _rounded(slope * leaf.scales(), 1)
    by_output, output_scale = _rounded(slope * step, 0)
    dot = functools.partial(lax.dot_general, preferred_element_type=jnp.int32)
    dx = dot(by_token, _centred(leaf), (((1,), (0,)), ((), ())))
    dw = dot(by_output, q, (((0,), (0,)), ((), ()))).astype(jnp.float32)
    dw -= (by_output.astype(jnp.float32) * zero).sum(0)[:, None]
    return dx.astype(jnp.float32) * token_scale, dw * output_scale.T


def _centred(leaf):
    """The codes (n, k) of a symmetric `IntArray` as int8: 0 means 0."""
    codes = unpack(leaf.codes, leaf.bits, leaf.fold.n, axis=-2)
    return codes - jnp.int8(leaf.zeros()) if leaf.bits < 8 else codes


def _rounded(x: Array, axis: int) -> tuple[Array, Array]:
    """(int8 codes, scale with one number along `axis`): E[codes · scale] = x."""
    scale = divisor(jnp.abs(x).max(axis, keepdims=True) / 127)
    own_bits = lax.bitcast_convert_type(x, jnp.uint32)
    noise = (hashed_bits(x.shape, own_bits) >> 8).astype(jnp.float32) * 2.0**-24
    return jnp.clip(jnp.floor(x / scale + noise), -127, 127).astype(jnp.int8), scale


def _no_slope(x: Any) -> Any:
    """Zeros, in the type that JAX wants for integers."""
    is_float = jnp.issubdtype(x.dtype, jnp.floating)
    return jnp.zeros_like(x) if is_float else np.zeros(x.shape, jax.dtypes.float0)
