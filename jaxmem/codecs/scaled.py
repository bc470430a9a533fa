"""Scaled: w ≈ scale · value(code), which integers, floats and codebooks share.

Codes are packed along n. A row has one scale, or one for each of its groups.
"""

import abc
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..core.arguments import check_fields
from ..core.fold import Fold
from ..core.leaf import is_encoded
from ..core.matrix_leaf import MatrixLeaf
from ..cpu_kernels.integer_rows import integer_rows_product
from ..cpu_kernels.scaled_rows import scaled_rows_product
from ..kernels.decoded_tiles import UNROLLED_TILES, cpu_product, decoded_product
from ..kernels.dispatch import by_platform, differentiated_by, product_like
from ..kernels.pallas_packed_matmul import packed_product
from .host_packing import cut_packed
from .packing import (
    WIDTHS,
    field_parts,
    interleave,
    pack,
    shard_packed,
    shifts,
    slice_packed,
    unpack,
    unpack_parts,
    unpack_rows,
)

_LAST_AXES = (((1,), (1,)), ((), ()))  # both operands are summed over their last axis


class Scaled(abc.ABC):
    """A codec that rounds each group of a row to a scale times one of the codec's values."""

    group: int | None

    @abc.abstractmethod
    def range(self, low: Array, high: Array) -> tuple[Array, Array | None]:
        """The scales of groups whose weights are in [low, high], and their zeros or offsets.

        All are (*stack, n, groups) f32; a codec without zeros gives None for them.
        """

    @abc.abstractmethod
    def round(self, matrix, scale, zero, fold, dtype) -> "ScaledArray":
        """The leaf with the nearest codes, given what `range` gives."""

    @abc.abstractmethod
    def snap(self, values: Array, scale: Array, zero: Array | None = None) -> Array:
        """The f32 values of the nearest codes, given scales and zeros as a leaf decodes them."""

    def encode(self, w: Any, axes: tuple[int, ...] = (-2,), stats: Any = None) -> "ScaledArray":
        if is_encoded(w):
            return w.map(self.encode)
        return _encode(self, w, tuple(axes))

    def fit(self, matrix: Array, fold: Fold, dtype: Any) -> "ScaledArray":
        """The leaf of a matrix (*stack, n, k), each group rounded to the range that it spans."""
        return self.round(matrix, *self.spans(matrix), fold, dtype)

    def spans(self, matrix: Array, stats: Any = None) -> tuple[Array, Array | None]:
        """The scales and zeros that span each group, (*stack, n, groups)."""
        return self.range(*group_limits(matrix, self.group))


def group_limits(matrix: Array, group: int | None) -> tuple[Array, Array]:
    """The smallest and the largest weight of each group, extended to 0: (*stack, n, groups) each.

    Example:
        >>> low, high = group_limits(jnp.array([[-1.0, 2.0, 3.0, 4.0]]), 2)
        >>> low.tolist(), high.tolist()
        ([[-1.0, 0.0]], [[2.0, 4.0]])
    """
    parts = grouped(matrix, group)
    return parts.min(-1, initial=0.0), parts.max(-1, initial=0.0)


@functools.partial(jax.jit, static_argnums=(0, 2))
def _encode(codec, w, axes):
    """The leaf. Compiled: step by step this would hold several f32 copies of the weight."""
    matrix, fold = Fold.from_weight(w, axes)
    return codec.fit(matrix.astype(jnp.float32), fold, w.dtype)


@dataclasses.dataclass(frozen=True)
class ScaledArray(MatrixLeaf):
    """Codes packed along n and scales (*stack, groups, n); a subclass defines a code's value."""

    codes: tuple[Array, ...]  # bit fields, each (*stack, n·width/8, k)
    scale: Array  # (*stack, groups, n)
    bits: int = dataclasses.field(metadata=dict(static=True))
    group: int = dataclasses.field(metadata=dict(static=True))
    fold: Fold = dataclasses.field(metadata=dict(static=True))
    dtype: Any = dataclasses.field(metadata=dict(static=True))

    batch_shape = property(lambda self: self.scale.shape[:-2])
    exponent_bits = property(lambda self: 0)  # of a float of 8 bits

    @property
    def reads_in_stack(self) -> bool:
        return _compiled_product(self) is not None

    @abc.abstractmethod
    def values(self, codes: Array) -> Array:
        """The f32 values of unpacked codes (int8, as of `unpack`)."""

    def scales(self) -> Array:
        """(*stack, groups, n) in f32."""
        return self.scale.astype(jnp.float32)

    def on_chip(self) -> dict[str, Any]:
        """The arguments of a kernel for an unstacked leaf; `values` takes codes in int32."""
        layout = dict(shifts=tuple(shifts(self.bits)), group=self.group)
        return dict(fields=self.codes, scale=self.scale, values=self.values, **layout)

    def rows(self):
        codes = unpack(self.codes, self.bits, self.scale.shape[-1], axis=-2)
        return self._scaled(codes, self.scales())

    def interleaved_rows(self):
        parts = unpack_parts(self.codes, self.bits, self.scale.shape[-1], axis=-2)
        scale = self.scales()
        return [self._scaled(codes, scale[..., j :: len(parts)]) for j, codes in enumerate(parts)]

    def _scaled(self, codes, scale):
        """Rows in f32, given their codes (*stack, rows, k) and scales (*stack, groups, rows)."""
        scale, k = scale.mT, codes.shape[-1]
        scale = scale if scale.shape[-1] == 1 else jnp.repeat(scale, self.group, -1)[..., :k]
        return self.values(codes) * scale

    def slice_rows(self, start, size):
        codes = slice_packed(self.codes, WIDTHS[self.bits], start, size)
        scale = lax.dynamic_slice_in_dim(self.scale, start, size, 1)
        return dataclasses.replace(self, codes=codes, scale=scale)

    def cut(self, fold):
        group = min(self.group, fold.k) or 1
        codes = cut_packed(self.codes, self.bits, fold.n, axis=-2)
        codes = tuple(a[..., : fold.k] for a in codes)
        scale = self.scale[..., : -(-fold.k // group), : fold.n]
        return dataclasses.replace(self, codes=codes, scale=scale, group=group, fold=fold)

    def shard_matrix(self, fold, side, parts):
        layout = dict(group=self.group, widths=WIDTHS[self.bits])
        shapes = shard_packed(self.codes, self.scale, fold, side, parts, **layout)
        if shapes is NotImplemented:
            return shapes
        return dataclasses.replace(self, codes=shapes[0], scale=shapes[1], fold=fold)

    def take_rows(self, index):
        flat = index.reshape(-1)
        rows = self._scaled(unpack_rows(self.codes, self.bits, flat), self.scales()[:, flat])
        return rows.reshape(*index.shape, rows.shape[-1])

    def matmul(self, x, precision=None):
        one_scale = self.scale.shape[-2] == 1 and getattr(self, "low", None) is None
        if one_scale and (self.bits == 8 or x.shape[0] == 1):
            return _scaled_matmul(x, self, precision=precision)
        return packed_matmul(x, self, precision=precision)

    def layer_matmul(self, x, layer, precision=None):
        return _matmul_in_stack(x, layer, precision=precision)


@functools.partial(
    jax.jit, static_argnames="precision"
)  # layers of one shape are traced and lowered once
@differentiated_by(decoded_product, product_like)
def packed_matmul(x: Array, leaf: Any, *, precision: Any) -> Array:
    """x (m, k) . rows^T of an unstacked leaf with `on_chip`: (m, n) f32, fast on each platform."""
    decoded = _on_cpu(leaf, precision)
    tiles = functools.partial(decoded_product, precision=precision, unrolled=UNROLLED_TILES)
    kernel = functools.partial(packed_product, otherwise=tiles, precision=precision)
    return by_platform(x, leaf, cpu=decoded, default=kernel, like=product_like(x, leaf))


@functools.partial(
    jax.jit, static_argnames="precision"
)  # layers of one shape are traced and lowered once
@differentiated_by(decoded_product, product_like)
def _scaled_matmul(x, leaf, *, precision):
    """`packed_matmul` of a leaf with one scale a row: an accelerator scales the sums instead."""
    decoded = _on_cpu(leaf, precision)
    scaled_after = functools.partial(_product_then_scale, precision=precision)
    return by_platform(x, leaf, cpu=decoded, default=scaled_after, like=product_like(x, leaf))


@functools.partial(jax.jit, static_argnames="precision")
@differentiated_by(decoded_product, product_like)
def _matmul_in_stack(x, leaf, *, precision):
    """`packed_matmul` of a `StackLayer`, read where it lies on a CPU and on one TPU."""
    stack, _ = leaf.in_stack()
    sliced = lambda x, leaf: leaf.unwrapped().matmul(x, precision)
    as_stored = lambda x, leaf: leaf.slice_of_stack().matmul(x, precision)
    on_cpu = functools.partial(_compiled_product(stack), otherwise=sliced)
    elsewhere = sliced
    if stack.scale.shape[-2] > 1:
        elsewhere = functools.partial(packed_product, otherwise=sliced, precision=precision)
    elif stack.bits == 8:
        elsewhere = as_stored
    return by_platform(x, leaf, cpu=on_cpu, default=elsewhere, like=product_like(x, leaf))


def _on_cpu(leaf, precision):
    """The product of x with a leaf on a CPU."""
    decoded = functools.partial(cpu_product, precision=precision)
    compiled = _compiled_product(leaf) if isinstance(leaf, ScaledArray) else None
    return functools.partial(compiled, otherwise=decoded) if compiled else decoded


def _compiled_product(leaf):
    """The library's product: of codes that count upward, 4-bit levels and 8-bit floats; or None."""
    if getattr(leaf, "low", None) is not None:
        return integer_rows_product
    return scaled_rows_product if leaf.bits == 4 or leaf.exponent_bits > 0 else None


def _product_then_scale(x, leaf, precision):
    """(x . values) · scale: an accelerator reads packed codes, and no decoded weight is written."""

    def dot(codes):
        w = leaf.values(codes).astype(x.dtype)
        return lax.dot_general(x, w, _LAST_AXES, precision, preferred_element_type=jnp.float32)

    (field,), n = leaf.codes, leaf.scale.shape[-1]
    parts = [dot(part) for part in field_parts(field, leaf.bits)]
    return interleave(parts, -1)[:, :n] * leaf.scales()


def check_group(codec: Any) -> None:
    """Checks the `group` of a codec: None, or weights along a row that share a scale.

    Raises:
        TypeError: the group is no integer.
        ValueError: the group is below 1.
    """
    check_fields(codec)
    if codec.group is not None and codec.group < 1:
        name = type(codec).__name__
        raise ValueError(f"{name} takes a group of at least 1 weight, got {codec.group}")


def grouped(matrix: Array, group: int | None) -> Array:
    """The matrix (*stack, n, k) as (*stack, n, groups, group); zeros fill up the last group."""
    k = matrix.shape[-1]
    g = min(group or k, k) or 1
    padding = [(0, 0)] * (matrix.ndim - 1) + [(0, -k % g)]
    return jnp.pad(matrix, padding).reshape(*matrix.shape[:-1], -(-k // g), g)


def repeat_groups(groups: Array, group: int | None, k: int) -> Array:
    """The numbers of the groups (*stack, n, groups), one for each weight: (*stack, n, k)."""
    return jnp.repeat(groups, min(group or k, k) or 1, -1)[..., :k]


def pack_rows(codes: Array, bits: int) -> tuple[Array, ...]:
    """Codes (*stack, n, k) as bit fields along n."""
    return pack(codes.astype(jnp.uint8), bits, axis=-2)


def select_level(codes: Array, levels: Sequence[Any]) -> Array:
    """levels[codes] in f32 as a chain of selections: a gather takes 1 GiB a matrix on a TPU.

    Example:
        >>> import jax.numpy as jnp
        >>> select_level(jnp.array([1, 0, 2], jnp.int8), (0.5, 1.5, 4.0)).tolist()
        [1.5, 0.5, 4.0]
    """
    pick = lambda y, pair: jnp.where(codes == pair[0], pair[1], y)
    return functools.reduce(pick, enumerate(levels[1:], 1), jnp.full(codes.shape, levels[0], "f4"))
