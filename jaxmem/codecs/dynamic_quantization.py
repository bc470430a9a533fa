"""Dynamic: x · w ≈ step_x · step_w · (integers of x · integers of w): W8A8, W4A8 and fp8."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..core.arguments import check_fields
from ..core.codec import CODEC, has_independent_rows, rounding_codec, row_encoder
from ..core.leaf import is_encoded
from ..core.matrix_leaf import MatrixLeaf, MatrixLeafWrapper
from ..core.padded import padded_encoder
from ..core.stack_layer import StackLayer
from ..cpu_kernels.integer_rows import rounded_rows_product
from ..cpu_kernels.library import is_native
from ..kernels.decoded_tiles import UNROLLED_TILES, decoded_product, map_tiles
from ..kernels.dispatch import (
    at_most,
    by_platform,
    differentiated_by,
    on_one_device,
    product_like,
)
from .float16_scales import divisor
from .integer_matmul import integer_product
from .packing import unpack

CPU_PACKED_ROWS = 32  # rows of x up to which a CPU is fastest without unpacking the weight
TPU_DECODED_ROWS = 128  # rows of x up to which a TPU waits for the weight, not for products
_FLOATS = {"e4m3": (jnp.float8_e4m3fn, 448.0), "e5m2": (jnp.float8_e5m2, 57344.0)}


@dataclasses.dataclass(frozen=True)
class Dynamic:
    """Rounds the inputs of the weight, too: `Dynamic(Int(8))` is W8A8, `Dynamic(Int(4))` is W4A8.

    `to` is "int8", with a range and a zero point for each token (a row of x), or "e4m3" or "e5m2"
    (fp8), with a scale for each token. Weights of `Int` and int8 inputs meet in int8 × int8
    products, summed in int32; other weights multiply the rounded x as floats. `static` fixes the
    ranges by calibration. The bytes are those of `codec`.

    Error: |Δx| ≤ (max − min)/510 (int8), |x|/16 (e4m3), |x|/8 (e5m2) for each x. The gradient goes
    straight through the rounding. Dettmers et al., 2022 (per-token ranges); Xiao et al., 2023.

    Raises:
        ValueError: `to` is unknown.
        TypeError: the leaf of `codec` does not store its matrix by rows.

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
        check_fields(self, codec=CODEC)
        if self.to not in ("int8", *_FLOATS):
            raise ValueError(f"Dynamic rounds to int8, e4m3 or e5m2, got {self.to!r}")

    @property
    def independent_rows(self) -> bool:
        return has_independent_rows(self.codec)

    @property
    def backward_codes(self) -> tuple[str, ...]:
        """The values of `Fake.backward` for which a product has codes to read."""
        grid = rounding_codec(self.codec)
        is_plain = getattr(grid, "symmetric", False) and grid.group is None
        return ("codes", "int8") if is_plain and self.to == "int8" else ("codes",)

    def encode(self, w: Any, axes: tuple[int, ...] = (-2,), stats: Any = None) -> "DynamicArray":
        if is_encoded(w):
            return w.map(self.encode)
        return self._around(self.codec.encode(w, axes, stats))

    def row_encoder(self, w, axes, stats):
        inner = row_encoder(self.codec, w, axes, stats)
        return inner and inner._replace(encode=lambda *rows: self._around(inner.encode(*rows)))

    def padded_encoder(self):
        inner = padded_encoder(self.codec)
        encode = lambda matrix, number: self._around(inner.encode(matrix, number))
        cut = lambda leaf, fold: dataclasses.replace(leaf, inner=inner.cut(leaf.inner, fold))
        return inner and inner._replace(encode=encode, cut=cut)

    def _around(self, inner):
        """The leaf around that of `codec`."""
        if not isinstance(inner, MatrixLeaf):
            raise TypeError(f"Dynamic takes a codec of rows, got {self.codec}")
        return DynamicArray(inner, None, self.to)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DynamicArray(MatrixLeafWrapper):
    """An encoded weight whose products round their other operand x first."""

    inner: Any
    limits: Array | None  # smallest and largest x, (*stack, 2) f32; None: each token's own
    to: str = dataclasses.field(metadata=dict(static=True))

    rounds_inputs = True

    @property
    def splits_sums(self):
        return self.limits is not None and self.inner.splits_sums  # a range is of a whole token

    @property
    def reads_in_stack(self):
        return self.to == "int8" and self.limits is None and self.inner.as_int_array() is self.inner

    def matmul(self, x, precision=None):
        return _matmul(x, self, precision=precision)

    def layer_matmul(self, x, layer, precision=None):
        return _matmul_in_stack(x, layer, precision=precision)

    def ranges(self, x: Array) -> tuple[Array, Array]:
        """The smallest and largest x, (m, 1) or (1, 1) f32, extended to 0."""
        if self.limits is not None:
            low, high = self.limits[:1, None], self.limits[1:, None]
        else:
            low, high = x.min(-1, keepdims=True, initial=0), x.max(-1, keepdims=True, initial=0)
        return jnp.minimum(low, 0.0), jnp.maximum(high, 0.0)

    def input_codes(self, x: Array) -> tuple[Array, Array, Array]:
        """What a product makes of x (m, k) f32: x ≈ (codes − zero) · step.

        The codes (m, k) are int8 or fp8; zero and step are (m or 1, 1) f32.
        """
        low, high = self.ranges(x)
        if self.to not in _FLOATS:
            return _to_int8(x, low, high)
        codes, step = _to_float8(x, low, high, self.to)
        return codes, jnp.zeros_like(step), step


def rounded(x: Array, leaf: DynamicArray) -> Array:
    """x (m, k) f32 as the product of `leaf` rounds it, in f32."""
    codes, zero, step = leaf.input_codes(x)
    return (codes.astype(jnp.float32) - zero) * step


def _decoded_inner_product(x, leaf, precision):
    """x (m, k) . rows^T of a `DynamicArray`, x not rounded: the straight-through derivative."""
    return decoded_product(x, leaf.inner, precision)


@functools.partial(
    jax.jit, static_argnames="precision"
)  # layers of one shape are traced and lowered once
@differentiated_by(_decoded_inner_product, product_like)
def _matmul(x, leaf, *, precision):
    """rounded(x) (m, k) . rows^T of an unstacked `DynamicArray`: (m, n) f32."""
    x_f32, inner = x.astype(jnp.float32), leaf.inner.as_int_array()
    if leaf.to != "int8" or inner is None or 0 in x.shape:
        return leaf.inner.matmul(rounded(x_f32, leaf).astype(x.dtype), precision)
    if leaf.limits is None:
        in_jax = lambda x, inner: _int8_product(x, dataclasses.replace(leaf, inner=inner), inner)
        return rounded_rows_product(x_f32, inner, otherwise=in_jax)
    return _int8_product(x_f32, leaf, inner)


def _sliced_product(x, layer, precision):
    """The straight-through derivative of a `StackLayer`."""
    return decoded_product(x, layer.unwrapped().inner, precision)


@functools.partial(jax.jit, static_argnames="precision")
@differentiated_by(_sliced_product, product_like)
def _matmul_in_stack(x, layer, *, precision):
    """`_matmul` of a `StackLayer`: the library reads the layer where it lies, others slice it."""

    def sliced(x, layer):
        return _matmul(x, layer.unwrapped(), precision=precision)

    def in_stack(x, layer):
        if not is_native():
            return sliced(x, layer)
        stack, index = layer.in_stack()
        weight, x_f32 = StackLayer(stack.inner, index), x.astype(jnp.float32)

        def in_floats(x, weight):
            q, zero, step = stack.input_codes(x)
            return weight.matmul(q.astype(jnp.float32) - zero) * step

        return rounded_rows_product(x_f32, weight, otherwise=in_floats)

    as_stored = lambda x, layer: _matmul(x, layer.slice_of_stack(), precision=precision)
    elsewhere = as_stored if layer.inner.inner.read_as_stored else sliced
    return by_platform(x, layer, cpu=in_stack, default=elsewhere, like=product_like(x, layer))


def _int8_product(x, leaf, inner):
    """x (m, k) f32, rounded to int8 as `leaf` does, times the rows of the `IntArray` `inner`."""
    q, zero, step = _to_int8(x, *leaf.ranges(x))
    # With groups, int8 products on a chip would write their sums by group to memory.
    grouped = inner.scale.shape[-2] > 1
    few_rows = at_most(x.shape[0], CPU_PACKED_ROWS)
    on_cpu = _float_product if grouped else _few_rows_product if few_rows else _integer_product
    on_tpu = (
        _bfloat16_product if grouped or at_most(x.shape[0], TPU_DECODED_ROWS) else _integer_product
    )
    products = dict(cpu=on_cpu, tpu=on_tpu, default=_integer_product)
    return lax.platform_dependent(q, zero, inner, **products) * step


def _to_float8(x, low, high, to):
    """(codes in fp8 (m, k), step): x ≈ code · step, step (m or 1, 1) f32."""
    dtype, largest = _FLOATS[to]
    step = divisor(jnp.maximum(-low, high) / largest)
    return jnp.clip(x / step, -largest, largest).astype(dtype), step


def _to_int8(x, low, high):
    """(codes int8 (m, k), zero, step): x ≈ (code − zero) · step, zero and step (m or 1, 1) f32."""
    step = divisor((high - low) / 255)
    zero = jnp.round(-low / step) - 128
    return jnp.clip(jnp.round(x / step) + zero, -128, 127).astype(jnp.int8), zero, step


def _few_rows_product(q, zero, leaf):
    """`_integer_product` for few rows on a CPU: the library's, where it is there."""
    like = product_like(q, leaf)
    return on_one_device(
        _native_product, _two_term_product, q, zero, leaf, platform="cpu", like=like
    )


def _native_product(q, zero, leaf):
    return (_float_product if is_native() else _two_term_product)(q, zero, leaf)


def _two_term_product(q, zero, leaf):
    """`_integer_product` by XLA: of q, and of ones, which the zero of q multiplies."""
    one = jnp.ones((len(q), 1), jnp.float32)
    ones = jnp.ones((1, q.shape[1]), jnp.int8)
    return integer_product([(q, one), (ones, -zero * one)], leaf)


def _float_product(q, zero, leaf):
    """`_integer_product` as the inner leaf multiplies floats; its library keeps integers exact."""
    return leaf.matmul(q.astype(jnp.float32) - zero)


def _bfloat16_product(q, zero, leaf):
    """`_integer_product` in bfloat16, which is exact for |q − zero| ≤ 255."""
    return leaf.matmul((q.astype(jnp.float32) - zero).astype(jnp.bfloat16))


def _integer_product(q, zero, leaf):
    """Σ_g scale_g · Σ (q − zero) · (code − zero of the code): (m, n) f32, by int8 products.

    q is int8 (m, k), zero f32 (m or 1, 1), the leaf an `IntArray`. A row of ones below q gives the
    sums of the codes, which the zero of q multiplies; also, an int8 product of one row is slow on a
    CPU.
    """
    (m, k), groups, g = q.shape, leaf.scale.shape[-2], leaf.group
    q = jnp.concatenate([q, jnp.ones((1, k), jnp.int8)])
    q = jnp.pad(q, ((0, 0), (0, groups * g - k))) if groups > 1 else q
    q = q.reshape(
        m + 1, groups, q.shape[1] // max(groups, 1)
    )  # the row of ones is padded with zeros, too
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
