"""GGUF blocks as encoded leaves: the codes and scales of the file are moved, not decoded.

Q4_0, Q5_0, Q8_0 and TQ2_0 are `Int`, Q4_1 and Q5_1 `Affine`, MXFP4 and NVFP4 `Float`, and the
IQ4 types a table of levels. The scales of a K-quant and of IQ4_XS are integer codes with one f16
scale for 256 weights: `DoubleQuant`. Bits per weight are those of the file.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..codecs.codebook import CodebookArray
from ..codecs.double_quantized_scales import DoubleQuantArray
from ..codecs.float_formats import FloatArray
from ..codecs.float_offset import AffineArray
from ..codecs.integer import IntArray
from ..codecs.packing import pack
from ..core.fold import Fold


@dataclasses.dataclass(frozen=True)
class Scales:
    """Scales (n, groups): f16 `unit`, or `unit` · integer `codes`, one unit for `per` codes."""

    unit: np.ndarray  # (n, groups) f16, or (n, groups // per)
    codes: np.ndarray | None = None  # (n, groups) int16
    bits: int = 0
    middle: int = 0  # a leaf stores code + middle, which is unsigned

    def leaf(self) -> Any:
        """The scales as an array, or as an encoded leaf if they have codes: (groups, n)."""
        if self.codes is None:
            return jnp.asarray(self.unit.T)
        n, groups = self.codes.shape
        fold = Fold((n,), (groups,), (-1, -2))
        codes = pack(jnp.asarray((self.codes + self.middle).astype(np.uint8)), self.bits, -2)
        scale, per = jnp.asarray(self.unit.T), groups // self.unit.shape[1]
        dtype = jnp.dtype("float32")
        if self.middle:
            return IntArray(codes, scale, None, self.bits, per, fold, dtype)
        return AffineArray(codes, scale, self.bits, per, fold, dtype)


@dataclasses.dataclass(frozen=True)
class Rows:
    """A matrix (n, k): scale · (code − zero), or scale · code + low where there is a `low`.

    With `levels` it is scale · level[code], the level of this table.
    """

    codes: np.ndarray  # (n, k) uint8
    bits: int
    group: int
    scale: Scales
    low: Scales | None = None
    zero: int | None = None  # None: 2^(bits−1)
    levels: str = ""

    def is_finite(self) -> bool:
        """Whether no scale is NaN or infinite."""
        return all(np.isfinite(s.unit).all() for s in (self.scale, self.low) if s is not None)

    def leaf(self, fold: Fold, dtype: Any) -> Any:
        """The leaf of the weight whose axes `fold` maps to the rows and columns of the matrix."""
        codes = pack(jnp.asarray(self.codes), self.bits, -2)
        metadata = (self.bits, self.group, fold, jnp.dtype(dtype))
        if self.levels:
            inner = CodebookArray(codes, self.scale.leaf(), *metadata, self.levels)
        elif self.low is None:
            scale, zero = self.scale.leaf(), None
            if self.zero is not None:
                zero = pack(jnp.full(scale.shape, self.zero, jnp.uint8), self.bits, -1)
            inner = IntArray(codes, scale, zero, *metadata)
        else:
            inner = AffineArray(codes, self.scale.leaf(), *metadata, self.low.leaf())
        return inner if self.scale.codes is None else DoubleQuantArray(inner)


@dataclasses.dataclass(frozen=True)
class FloatRows:
    """A matrix (n, k) of floats of 4 bits: scale · e2m1, with one scale for `group` columns."""

    codes: np.ndarray  # (n, k) uint8
    group: int
    scale: np.ndarray  # (n, groups) uint8: bits of e8m0 or e4m3
    format: str

    def is_finite(self) -> bool:
        """Whether no scale is NaN."""
        return not (self.scale == 255).any()

    def leaf(self, fold: Fold, dtype: Any) -> Any:
        """The leaf of the weight whose axes `fold` maps to the rows and columns of the matrix."""
        codes, scale = pack(jnp.asarray(self.codes), 4, -2), jnp.asarray(self.scale.T)
        whole = jnp.ones((1, 1), jnp.float32) if self.format == "nvfp4" else None
        dtype = jnp.dtype(dtype)
        return FloatArray(codes, scale, 4, self.group, fold, dtype, whole, self.format)


def rows(kind: str, data: np.ndarray) -> Rows | FloatRows:
    """The matrix whose rows are blocks (n, bytes) of one of `TYPES`."""
    size, read = TYPES[kind]
    return read(data.reshape(len(data), -1, size))


def block_fields(b: np.ndarray, *sizes: int) -> list[np.ndarray]:
    """Splits the bytes of blocks (n, blocks, bytes) into consecutive fields of `sizes` bytes."""
    return np.split(b, np.cumsum(sizes)[:-1], axis=-1)


def _half(b: np.ndarray) -> np.ndarray:
    """f16 numbers (n, blocks) from their bytes (n, blocks, 2)."""
    return np.ascontiguousarray(b).view("<f2")[..., 0].astype(np.float16)


def _planes(b: np.ndarray, bits: int, run: int) -> np.ndarray:
    """Codes (n, k) from bytes: the lowest `bits` of `run` bytes are `run` codes, and so upwards."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    parts = b.reshape(*b.shape[:-1], -1, 1, run) >> shifts & np.uint8(2**bits - 1)
    return parts.reshape(len(b), -1)


def _fifth(b: np.ndarray) -> np.ndarray:
    """The fifth bit of each code, shifted to its place: (n, k) from bytes (n, blocks, 4)."""
    bits = np.unpackbits(np.ascontiguousarray(b), axis=-1, bitorder="little")
    return bits.reshape(len(b), -1) << 4


# Each function below reads blocks (n, blocks, bytes of a block) of one type. d, m, qs and qh are
# ggml's names of the fields: the scale, the minimum, the codes and the fifth bits of the codes.


def _q4_0(b):
    d, qs = block_fields(b, 2, 16)
    return Rows(_planes(qs, 4, 16), 4, 32, Scales(_half(d)))


def _q4_1(b):
    d, m, qs = block_fields(b, 2, 2, 16)
    return Rows(_planes(qs, 4, 16), 4, 32, Scales(_half(d)), Scales(_half(m)))


def _q5_0(b):
    d, qh, qs = block_fields(b, 2, 4, 16)
    return Rows(_planes(qs, 4, 16) | _fifth(qh), 5, 32, Scales(_half(d)))


def _q5_1(b):
    d, m, qh, qs = block_fields(b, 2, 2, 4, 16)
    return Rows(_planes(qs, 4, 16) | _fifth(qh), 5, 32, Scales(_half(d)), Scales(_half(m)))


def _q8_0(b):
    d, qs = block_fields(b, 2, 32)
    return Rows(qs.reshape(len(b), -1) ^ 128, 8, 32, Scales(_half(d)))


def _q2_k(b):
    packed, qs, d, m = block_fields(b, 16, 64, 2, 2)
    integers = lambda a: a.reshape(len(b), -1).astype(np.int16)
    low = Scales(-_half(m), integers(packed >> 4), 4)
    return Rows(_planes(qs, 2, 32), 2, 16, Scales(_half(d), integers(packed & 15), 4), low)


def _q3_k(b):
    high, qs, packed, d = block_fields(b, 32, 64, 12, 2)
    high_bits = _planes(packed[..., 8:], 2, 4)
    scale_codes = (_planes(packed[..., :8], 4, 8) | high_bits << 4).astype(np.int16) - 32
    codes = _planes(qs, 2, 32) | _planes(high, 1, 32) << 2
    return Rows(codes, 3, 16, Scales(_half(d), scale_codes, 6, 32))


def _six_bits(packed: np.ndarray) -> list[np.ndarray]:
    """The eight scales and eight minima of a super-block of Q4_K or Q5_K."""
    first, second, third = block_fields(packed, 4, 4, 4)
    scales = np.concatenate([first & 63, third & 15 | first >> 2 & 48], -1)
    minima = np.concatenate([second & 63, third >> 4 | second >> 2 & 48], -1)
    return [a.reshape(len(packed), -1).astype(np.int16) for a in (scales, minima)]


def _q4_k(b):
    d, m, packed, qs = block_fields(b, 2, 2, 12, 128)
    scale, low = _six_bits(packed)
    scales = Scales(_half(d), scale, 6), Scales(-_half(m), low, 6)
    return Rows(_planes(qs, 4, 32), 4, 32, *scales)


def _q5_k(b):
    d, m, packed, high, qs = block_fields(b, 2, 2, 12, 32, 128)
    scale, low = _six_bits(packed)
    scales = Scales(_half(d), scale, 6), Scales(-_half(m), low, 6)
    return Rows(_planes(qs, 4, 32) | _planes(high, 1, 32) << 4, 5, 32, *scales)


def _q6_k(b):
    qs, high, sc, d = block_fields(b, 128, 64, 16, 2)
    scale_codes = np.ascontiguousarray(sc).view(np.int8).reshape(len(b), -1).astype(np.int16)
    codes = _planes(qs, 4, 64) | _planes(high, 2, 32) << 4
    return Rows(codes, 6, 16, Scales(_half(d), scale_codes, 8, 128))


def _iq4_nl(b):
    d, qs = block_fields(b, 2, 16)
    return Rows(_planes(qs, 4, 16), 4, 32, Scales(_half(d)), levels="iq4")


def _iq4_xs(b):
    d, high, packed, qs = block_fields(b, 2, 2, 4, 128)
    scale_codes = (_planes(packed, 4, 1) | _planes(high, 2, 1) << 4).astype(np.int16) - 32
    return Rows(_planes(qs, 4, 16), 4, 32, Scales(_half(d), scale_codes, 6, 32), levels="iq4")


def _tq2_0(b):
    qs, d = block_fields(b, 64, 2)
    return Rows(_planes(qs, 2, 32), 2, 256, Scales(_half(d)), zero=1)


def _mxfp4(b):
    e, qs = block_fields(b, 1, 16)
    return FloatRows(_planes(qs, 4, 16), 32, e[..., 0], "mxfp4")


def _nvfp4(b):
    scale, qs = block_fields(b, 4, 32)
    scale = scale.reshape(len(b), -1) & 127  # without a sign, and NaN is 0
    return FloatRows(_planes(qs, 4, 8), 16, np.where(scale == 127, 0, scale), "nvfp4")


TYPES: dict[str, tuple[int, Callable[[np.ndarray], Rows | FloatRows]]] = {
    "Q4_0": (18, _q4_0),
    "Q4_1": (20, _q4_1),
    "Q5_0": (22, _q5_0),
    "Q5_1": (24, _q5_1),
    "Q8_0": (34, _q8_0),
    "Q2_K": (84, _q2_k),
    "Q3_K": (110, _q3_k),
    "Q4_K": (144, _q4_k),
    "Q5_K": (176, _q5_k),
    "Q6_K": (210, _q6_k),
    "IQ4_NL": (18, _iq4_nl),
    "IQ4_XS": (136, _iq4_xs),
    "TQ2_0": (66, _tq2_0),
    "MXFP4": (17, _mxfp4),
    "NVFP4": (36, _nvfp4),
}
