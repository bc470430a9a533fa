"""Dynamic: x · w ≈ step_x · step_w · (integers of x · integers of w): W8A8, W4A8 and fp8."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..core.leaf import is_encoded
from ..core.matrix_leaf import MatrixLeaf, MatrixLeafWrapper
from ..kernels.tiled_matmul import UNROLLED_TILES, decoded_product, map_tiles
from .integer_matmul import by_integers
from .packing import unpack
from .scale_rounding import divisor

FEW_ROWS = 32  # up to here a CPU does best not to unpack
FEW_ON_TPU = 128  # up to here a TPU waits for the weight and not for products
_FLOATS = {"e4m3": (jnp.float8_e4m3fn, 448.0), "e5m2": (jnp.float8_e5m2, 57344.0)}


@dataclasses.dataclass(frozen=True)
class Dynamic:
    """Rounds what the weight multiplies, too: `Dynamic(Int(8))` is W8A8, `Dynamic(Int(4))` W4A8.

    `to` is "int8", with the range and zero point of each token (a row of x), or "e4m3" or "e5m2"
    (fp8), with the largest of each token. Integers meet weights of `Int` in int8 × int8 products,
    summed in int32; other weights take the rounded x as floats. `static` fixes the ranges by
    calibration. The bytes are those of the codec.

    Error: |Δx| ≤ (max − min)/510 (int8), |x|/16 (e4m3), |x|/8 (e5m2) for each x. The gradient goes
    straight through the rounding. Dettmers et al., 2022 (per-token ranges); Xiao et al., 2023.

    Raises:
        ValueError: an unknown `to`.
        TypeError: the codec's leaf is not one of rows.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> w = {"w": jm.Dynamic(jm.Int(8)).encode(jnp.eye(3))}
        >>> y = jm.lift(lambda p, x: x @ p["w"])(w, jnp.array([[0.5, 1.0, 2.55]]))
        >>> [round(float(v), 2) for v in y[0]]  # steps of .01
        [0.5, 1.0, 2.55]
    """

    codec: Any
    to: str = "int8"

    def __post_init__(self):
        if self.to not in ("int8", *_FLOATS):
            raise ValueError(f"Dynamic rounds to int8, e4m3 or e5m2, got {self.to!r}")

    def encode(self, w: Any, axes: tuple[int, ...] = (-2,), stats: Any = None) -> "DynamicArray":
        if is_encoded(w):
            return w.map(self.encode)
        inner = self.codec.encode(w, axes, stats)
        if not isinstance(inner, MatrixLeaf):
            raise TypeError(f"Dynamic takes a codec of rows, got {self.codec}")
        return DynamicArray(inner, None, self.to)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DynamicArray(MatrixLeafWrapper):
    """An encoded weight whose products round the other operand first."""

    inner: Any
    limits: Array | None  # (*stack, 2) f32, the least and largest x; None: of each token
    to: str = dataclasses.field(metadata=dict(static=True))

    rounds_inputs = True

    @property
    def splits_sums(self):
        return self.limits is not None and self.inner.splits_sums  # ranges are of the whole token

    def matmul(self, x, precision=None):
        return _shared_matmul(x, self, precision)

    def ranges(self, x: Array) -> tuple[Array, Array]:
        """The (m, 1) or (1, 1) f32 least and largest x, with 0 between them."""
        if self.limits is not None:
            low, high = self.limits[:1, None], self.limits[1:, None]
        else:
            low, high = x.min(-1, keepdims=True, initial=0), x.max(-1, keepdims=True, initial=0)
        return jnp.minimum(low, 0.0), jnp.maximum(high, 0.0)


def rounded(x: Array, leaf: DynamicArray) -> Array:
    """x (m, k) in f32 as the product sees it."""
    low, high = leaf.ranges(x)
    if leaf.to in _FLOATS:
        kind, most = _FLOATS[leaf.to]
        step = divisor(jnp.maximum(-low, high) / most)
        near = jnp.clip(x / step, -most, most).astype(kind)
        return near.astype(jnp.float32) * step
    q, zero, step = _integers(x, low, high)
    return (q.astype(jnp.float32) - zero) * step


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _matmul(x, leaf, precision):
    """rounded(x) (m, k) . rows^T: (m, n) f32."""
    wide, inner = x.astype(jnp.float32), leaf.inner.as_int_array()
    if leaf.to != "int8" or inner is None:
        return leaf.inner.matmul(rounded(wide, leaf).astype(x.dtype), precision)
    q, zero, step = _integers(wide, *leaf.ranges(wide))
    grouped = inner.scale.shape[-2] > 1  # a chip's int8 products would leave their sums by group
    few = x.size and len(x) <= FEW_ROWS
    on_cpu = _in_floats if grouped else _by_rows if few else _integer_product
    on_tpu = _in_halves if grouped or len(x) <= FEW_ON_TPU else _integer_product
    how = dict(cpu=on_cpu, tpu=on_tpu, default=_integer_product)
    return lax.platform_dependent(q, zero, inner, **how) * step


@_matmul.defjvp
def _matmul_jvp(precision, primals, tangents):
    straight = lambda x, leaf: decoded_product(x, leaf.inner, precision)
    return _matmul(*primals, precision), jax.jvp(straight, primals, tangents)[1]


_shared_matmul = jax.jit(_matmul, static_argnums=2)  # layers of one shape trace and lower it once


def _integers(x, low, high):
    """(codes int8 (m, k), zero, step): x ≈ (code − zero) · step, zero and step (m or 1, 1) f32."""
    step = divisor((high - low) / 255)
    zero = jnp.round(-low / step) - 128
    return jnp.clip(jnp.round(x / step) + zero, -128, 127).astype(jnp.int8), zero, step


def _by_rows(q, zero, leaf):
    """The same as `_integer_product`, for few rows on a CPU."""
    one = jnp.ones((len(q), 1), jnp.float32)
    ones = jnp.ones((1, q.shape[1]), jnp.int8)
    return by_integers([(q, one), (ones, -zero * one)], leaf)


def _in_floats(q, zero, leaf):
    """The same by decoding the weight, which has groups."""
    return leaf.matmul(q.astype(jnp.float32) - zero)


def _in_halves(q, zero, leaf):
    """The same by the leaf's own product, of bfloat16, which holds every |q − zero| ≤ 255."""
    return leaf.matmul((q.astype(jnp.float32) - zero).astype(jnp.bfloat16))


def _integer_product(q, zero, leaf):
    """Σ_g scale_g · Σ (q − zero) · (code − zero of the code): (m, n) f32, leaf of `Int`.

    A row of ones beside q gives the sum of the codes, which the zero of q needs; also, a CPU's
    integer product wants more rows than one.
    """
    (m, k), groups, g = q.shape, leaf.scale.shape[-2], leaf.group
    q = jnp.concatenate([q, jnp.ones((1, k), jnp.int8)])
    q = jnp.pad(q, ((0, 0), (0, groups * g - k))) if groups > 1 else q
    q = q.reshape(m + 1, groups, -1)  # the padding of the ones is 0 too
    sums = jnp.moveaxis(q.astype(jnp.int32).sum(-1), 0, 1)[..., None]  # (groups, m + 1, 1)

    def product(q, part):
        n = part.scale.shape[-1]
        codes = unpack(part.codes, part.bits, n, axis=-2)
        centre = 0 if part.zero is not None else part.zeros()
        codes = codes - jnp.int8(centre) if centre else codes
        if groups == 1:
            dims = (((1,), (1,)), ((), ()))
            y = lax.dot_general(q[:, 0], codes, dims, preferred_element_type=jnp.int32)[None]
        else:
            codes = jnp.pad(codes, ((0, 0), (0, groups * g - k))).reshape(n, groups, g)
            dims = (((2,), (2,)), ((1,), (1,)))
            y = lax.dot_general(q, codes, dims, preferred_element_type=jnp.int32)
        if part.zero is not None:
            y -= sums * part.zeros()[:, None, :]
        y = y.astype(jnp.float32)
        y = y[:, :m] - zero[None] * y[:, m:]
        return (y * part.scale.astype(jnp.float32)[:, None, :]).sum(0)

    if leaf.bits == 8:
        return product(q, leaf)
    tiles = lambda unrolled: lambda q, leaf: map_tiles(product, q, leaf, unrolled=unrolled)
    return lax.platform_dependent(q, leaf, cpu=tiles(0), default=tiles(UNROLLED_TILES))
