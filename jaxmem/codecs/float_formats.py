"""Float: w ≈ scale · float in 8 or 4 bits: fp8, fp4 and the block formats MX and NVFP4."""

import dataclasses
import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ..core.arguments import check_fields
from ..core.codec import RowEncoder
from ..core.fold import Fold
from ..core.row_slices import scan_rows
from .float16_scales import divisor, float16_above
from .scaled import Scaled, ScaledArray, check_group, pack_rows, repeat_groups


class _Format(NamedTuple):
    kind: str  # type of the values, a key of _KINDS
    group: int | None  # weights of a block; None: the caller chooses
    scale: str  # type of the scales: "f16", "e8m0" or "e4m3"


_FORMATS = {
    "e4m3": _Format("e4m3", None, "f16"),
    "e5m2": _Format("e5m2", None, "f16"),
    "e2m1": _Format("e2m1", None, "f16"),
    "mxfp8": _Format("e4m3", 32, "e8m0"),
    "mxfp4": _Format("e2m1", 32, "e8m0"),
    "nvfp4": _Format("e2m1", 16, "e4m3"),
}


class _Kind(NamedTuple):
    bits: int
    fraction: int  # bits after the point
    least: int  # exponent of the smallest normal number
    top: float  # the largest number


_KINDS = {
    "e4m3": _Kind(8, 3, -6, 448.0),
    "e5m2": _Kind(8, 2, -14, 57344.0),
    "e2m1": _Kind(4, 1, 0, 6.0),
}


@dataclasses.dataclass(frozen=True)
class Float(Scaled):
    """Rounds to the nearest float of a `format`, ties to even, times a shared scale.

    "e4m3", "e5m2" (fp8) and "e2m1" (fp4) have a float16 scale for each output channel or `group`
    along the summed axes, rounded up so that no weight is clipped. "mxfp8" (e4m3) and "mxfp4"
    (e2m1) have blocks of 32 weights whose scale is a power of two,
    2^(⌊log2 absmax⌋ − ⌊log2 largest⌋), in one byte. "nvfp4" (e2m1) has blocks of 16 weights with an
    e4m3 scale, and one f32 scale for the matrix.

    Error: |w − decode| ≤ max(|w| · 2^−(f+1), scale · 2^(e−f−1)), with f bits after the point and
    the smallest exponent e: (3, −6) in e4m3, (2, −14) in e5m2, (1, 0) in e2m1. The scale of "mxfp8"
    may clip the largest weights: their error is at most |w| · 2^−3. Micikevicius et al., 2022; Open
    Compute Project, Microscaling Formats 1.0, 2023; NVIDIA, 2025 (nvfp4).

    Raises:
        ValueError: `format` is unknown, `group` is below 1, or the format's blocks have another
            size than `group`.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> w = jnp.array([[0.1], [0.26], [0.9], [3.1], [-6.0]])
        >>> Float("e2m1").encode(w).decode()[:, 0].tolist()
        [0.0, 0.5, 1.0, 3.0, -6.0]
        >>> jm.nbytes(Float("mxfp4").encode(jnp.ones((64, 16)))) * 8 / (64 * 16)
        4.25
    """

    format: str
    _: dataclasses.KW_ONLY
    group: int | None = None
    ignores_zeros: ClassVar[bool] = True  # the range of a group includes 0

    def __post_init__(self):
        check_fields(self)
        if self.format not in _FORMATS:
            raise ValueError(f"Float takes one of {', '.join(_FORMATS)}, got {self.format!r}")
        block = _FORMATS[self.format].group
        if block is not None and self.group not in (None, block):
            raise ValueError(f"{self.format} has groups of {block}, got a group of {self.group}")
        check_group(self)
        object.__setattr__(self, "group", block or self.group)

    @property
    def independent_rows(self) -> bool:
        return self.format != "nvfp4"  # whose matrix has one scale more

    def range(self, low, high):
        kind, _, scale_kind = _FORMATS[self.format]
        largest, top = jnp.maximum(-low, high), _KINDS[kind].top
        if scale_kind == "e8m0":
            e = exponent(largest) - exponent(jnp.float32(top))
            return power(jnp.maximum(e, -100)), None  # so that scale · step is a normal f32
        if scale_kind == "f16":
            unit = _unit(self.format)
            return float16_above(largest, top * unit).astype(jnp.float32) * unit, None
        return largest / top, None

    def row_encoder(self, w, axes, stats):
        """Encodes some rows, given the largest weight of all of them in the format "nvfp4"."""
        whole = None
        if self.format == "nvfp4":
            size = lambda rows: jnp.abs(rows.astype(jnp.float32)).max(initial=0.0)
            step = lambda most, rows, _: jnp.maximum(most, size(rows))
            largest = scan_rows(step, jnp.float32(0), w, axes)
            top = _KINDS[_FORMATS[self.format].kind].top
            whole = _matrix_scale(_round_bits(largest / top, 20)).reshape(1, 1)

        def encode(rows, start):
            matrix, fold = Fold.from_weight(rows, axes)
            matrix = matrix.astype(jnp.float32)
            return self.round(matrix, *self.spans(matrix), fold, w.dtype, whole=whole)

        return RowEncoder(encode)

    def round(self, matrix, scale, zero, fold, dtype, *, whole=None):
        kind, _, scale_kind = _FORMATS[self.format]
        if scale_kind == "f16":
            stored = (scale / _unit(self.format)).astype(jnp.float16)
        elif scale_kind == "e8m0":
            stored = (exponent(scale) + 127).astype(jnp.uint8)
        else:
            # A scale that was decoded before becomes again what it was.
            scale = _round_bits(scale, 20)
            if whole is None:
                whole = _matrix_scale(scale.max((-2, -1), keepdims=True, initial=0.0))
            whole = jnp.where(whole == 0, 1.0, whole)
            part = nearest(scale / whole, "e4m3").clip(2.0**-9)
            stored = _bits(part, jnp.float8_e4m3fn)
        group = min(self.group or fold.k, fold.k) or 1
        leaf = FloatArray(
            (), stored.mT, _KINDS[kind].bits, group, fold, jnp.dtype(dtype), whole, self.format
        )
        ratio = matrix / repeat_groups(divisor(leaf.scales().mT), group, fold.k)
        return dataclasses.replace(leaf, codes=pack_rows(_to_codes(ratio, kind), leaf.bits))

    def snap(self, values, scale, zero=None):
        return nearest(values / divisor(scale), _FORMATS[self.format].kind) * scale


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FloatArray(ScaledArray):
    """Float codes packed along n; scales f16, or the bits of e8m0 or e4m3 as uint8."""

    whole: Array | None  # the matrix's scale (*stack, 1, 1) f32; nvfp4 only
    format: str = dataclasses.field(metadata=dict(static=True))

    @property
    def exponent_bits(self) -> int:
        kind = _KINDS[_FORMATS[self.format].kind]
        return 7 - kind.fraction if kind.bits == 8 else 0

    def scales(self):
        scale_kind = _FORMATS[self.format].scale
        if scale_kind == "f16":
            return self.scale.astype(jnp.float32) * _unit(self.format)
        if scale_kind == "e8m0":
            return power(self.scale.astype(jnp.int32) - 127)
        return from_bits(self.scale.astype(jnp.int32), "e4m3") * self.whole

    def on_chip(self):
        scale_kind = _FORMATS[self.format].scale
        if scale_kind == "f16":
            return super().on_chip() | {"unit": _unit(self.format)}
        if scale_kind == "e8m0":
            return super().on_chip() | {"scales": lambda raw: power(raw - 127)}
        scales = {"scales": lambda raw: from_bits(raw, "e4m3"), "unit": self.whole[0, 0]}
        return super().on_chip() | scales

    def values(self, codes):
        kind = _FORMATS[self.format].kind
        if kind == "e2m1":
            size = codes & 7  # 0, 0.5, 1, 1.5, 2, 3, 4, 6
            twice = jnp.where(size < 4, size, jnp.where(size < 6, 2 * size - 4, 4 * size - 16))
            return jnp.where(codes & 8, -twice, twice).astype(jnp.float32) * 0.5
        return from_bits((codes.astype(jnp.int32) ^ 128) & 255, kind)


def nearest(x: Array, kind: str) -> Array:
    """The nearest numbers of "e4m3", "e5m2" or "e2m1" in f32, ties to even, clipped to the largest.

    XLA's own conversion is not used, since it may round twice (f32 to f16 to f8).

    Example:
        >>> import jax.numpy as jnp
        >>> nearest(jnp.array([0.8, 2.5, 100.0]), "e2m1").tolist()
        [1.0, 2.0, 6.0]
    """
    _, fraction, least, top = _KINDS[kind]
    step = power(jnp.maximum(exponent(x), least) - fraction)
    return jnp.clip(jnp.round(x / step) * step, -top, top)


def exponent(x: Array) -> Array:
    """⌊log2 |x|⌋ of f32 numbers as int32; -127 for numbers below 2^-126 and 0.

    Example:
        >>> exponent(jnp.array([1.0, 6.0, 0.0])).tolist()
        [0, 2, -127]
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)
    return (bits >> 23 & 255) - 127


def from_bits(raw: Array, kind: str) -> Array:
    """The finite numbers, in f32, whose 8 bits are in `raw` (int32); `kind` is their type.

    XLA's own conversion is slow on a CPU: through f16, one number at a time.

    Example:
        >>> import jax.numpy as jnp
        >>> from_bits(jnp.array([0x38, 0x81, 0x7E]), "e4m3").tolist()  # 1, −2^-9, 448
        [1.0, -0.001953125, 448.0]
    """
    _, fraction, least, _ = _KINDS[kind]
    size = raw & 127
    normal = jax.lax.bitcast_convert_type(
        (size << 23 - fraction) + (least - 1 + 127 << 23), jnp.float32
    )
    number = jnp.where(
        size < 1 << fraction, size.astype(jnp.float32) * 2.0 ** (least - fraction), normal
    )
    return jnp.where(raw & 128 != 0, -number, number)


def power(e: Array) -> Array:
    """2^e in f32 for int32 e in [-126, 127]."""
    return jax.lax.bitcast_convert_type(e + 127 << 23, jnp.float32)


def _unit(format: str) -> float:
    """The unit of the f16 scales, which makes them as large as the weights, not subnormal."""
    return 2.0 ** -(math.frexp(_KINDS[_FORMATS[format].kind].top)[1] - 1)


def _to_codes(x, kind):
    """The codes (uint8) of the nearest numbers of type `kind` to x (f32)."""
    near = nearest(x, kind)
    if kind != "e2m1":
        return _bits(near, jnp.float8_e4m3fn if kind == "e4m3" else jnp.float8_e5m2)
    twice = jnp.abs(near * 2).astype(jnp.uint8)  # 0, 1, 2, 3, 4, 6, 8, 12
    size = jnp.where(twice < 4, twice, jnp.where(twice < 8, twice // 2 + 2, twice // 4 + 4))
    return size | jnp.where(near < 0, jnp.uint8(8), jnp.uint8(0))


def _bits(x, narrow: Any):
    """The bits (uint8) of x in the 8-bit float dtype `narrow`."""
    return jax.lax.bitcast_convert_type(x.astype(narrow), jnp.uint8)


def _matrix_scale(largest):
    """The least scale of 11 bits that is ≥ largest / 448; its products with e4m3 are exact."""
    near = _round_bits(largest / 448, 11)
    more = jax.lax.bitcast_convert_type(near, jnp.int32) + (1 << 13)
    return jnp.where(near * 448 < largest, jax.lax.bitcast_convert_type(more, jnp.float32), near)


def _round_bits(x, bits):
    """x (f32, not negative) rounded to `bits` significant bits."""
    drop = 24 - bits
    raw = jax.lax.bitcast_convert_type(x, jnp.int32) + (1 << drop - 1)
    return jax.lax.bitcast_convert_type(raw >> drop << drop, jnp.float32)
