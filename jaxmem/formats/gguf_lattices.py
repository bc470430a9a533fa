"""GGUF's IQ1, IQ2 and IQ3 blocks as encoded leaves: 256 weights that are points of a lattice.

The tables of points are those of the `gguf` package. ggml's fields of a block are d, the scale of
256 weights; qs and qh, the low and high bits of indices; signs; and scales of 16 or 32 weights.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from ..codecs.lattice import LatticeArray
from ..codecs.packing import pack
from ..codecs.scale_tables import OddScales
from ..core.fold import Fold
from .gguf_blocks import block_fields


@dataclasses.dataclass(frozen=True)
class LatticeRows:
    """A matrix (n, k) of one of `TYPES`; arrays are uint8 but for `unit`, which is f16."""

    kind: str
    index: np.ndarray  # (n, indices) uint16
    unit: np.ndarray  # (n, blocks)
    scale: np.ndarray  # (n, groups)
    scale_bits: int
    factor: float
    high_bits: int = 0
    signs: np.ndarray | None = None  # (n, k / 8)
    sign_bits: int = 0
    shifts: np.ndarray | None = None  # (n, shifts)

    def is_finite(self) -> bool:
        """Whether no scale is NaN or infinite."""
        return bool(np.isfinite(self.unit).all())

    def leaf(self, fold: Fold, dtype: Any) -> LatticeArray:
        """The leaf of the weight whose axes `fold` maps to the rows and columns of the matrix."""
        fields = lambda a, bits: () if a is None else pack(jnp.asarray(a), bits, -2)
        high = (self.index >> 8).astype(np.uint8) if self.high_bits else None
        codes = pack(jnp.asarray(self.scale.T), self.scale_bits, -1)
        return LatticeArray(
            jnp.asarray(self.index.astype(np.uint8)),
            fields(high, self.high_bits),
            fields(self.signs, self.sign_bits),
            fields(self.shifts, 1),
            jnp.asarray(_points(self.kind)),
            OddScales(codes, jnp.asarray(self.unit.T), self.scale_bits, self.factor),
            self.high_bits,
            self.sign_bits,
            0 if self.shifts is None else fold.k // self.shifts.shape[1],
            fold.k // self.scale.shape[1],
            fold,
            jnp.dtype(dtype),
        )


def rows(kind: str, data: np.ndarray) -> LatticeRows:
    """The matrix whose rows are blocks (n, bytes) of one of `TYPES`."""
    size, read = TYPES[kind]
    return LatticeRows(kind, **read(data.reshape(len(data), -1, size)))


def _points(kind: str) -> np.ndarray:
    """The points of a type, (entries, 4 or 8) int8."""
    from gguf import quants

    table = getattr(quants, kind)
    table.init_grid()
    return table.grid.reshape(table.grid_shape).astype(np.int8)


def _words(b: np.ndarray, dtype: str) -> np.ndarray:
    """Numbers of several bytes: (n, all of them in a row)."""
    return np.ascontiguousarray(b).view(dtype).reshape(len(b), -1)


def _parts(numbers: np.ndarray, places: tuple[int, ...], mask: int) -> np.ndarray:
    """The bits of `mask` of each number (n, m) from each place on: (n, m · places) uint8."""
    shifted = numbers[..., None] >> np.array(places, numbers.dtype)
    return (shifted & numbers.dtype.type(mask)).astype(np.uint8).reshape(len(numbers), -1)


_SIGNS = (0, 7, 14, 21)  # places of four times seven signs in a word, whose last four bits scale


def _iq2_xxs(b):
    d, qs = block_fields(b, 2, 64)
    words = _words(qs, "<u4").reshape(len(b), -1, 2)
    return dict(
        index=_words(words[..., 0].copy(), "u1").astype(np.uint16),
        signs=_parts(words[..., 1], _SIGNS, 127), sign_bits=7,
        scale=(words[..., 1] >> 28).astype(np.uint8), scale_bits=4,
        unit=_words(d, "<f2"), factor=1 / 8,
    )  # fmt: skip


def _iq2_xs(b):
    d, qs, scales = block_fields(b, 2, 64, 8)
    words = _words(qs, "<u2")
    return dict(
        index=words & 511, high_bits=1,
        signs=(words >> 9).astype(np.uint8), sign_bits=7,
        scale=_parts(_words(scales, "u1"), (0, 4), 15), scale_bits=4,
        unit=_words(d, "<f2"), factor=1 / 8,
    )  # fmt: skip


def _iq2_s(b):
    d, qs, signs, qh, scales = block_fields(b, 2, 32, 32, 8, 8)
    return dict(
        index=_high(qs, _parts(_words(qh, "u1"), (0, 2, 4, 6), 3)), high_bits=2,
        signs=_words(signs, "u1"), sign_bits=8,
        scale=_parts(_words(scales, "u1"), (0, 4), 15), scale_bits=4,
        unit=_words(d, "<f2"), factor=1 / 8,
    )  # fmt: skip


def _iq3_xxs(b):
    d, qs, scales = block_fields(b, 2, 64, 32)
    words = _words(scales, "<u4")
    return dict(
        index=_words(qs, "u1").astype(np.uint16),
        signs=_parts(words, _SIGNS, 127), sign_bits=7,
        scale=(words >> 28).astype(np.uint8), scale_bits=4,
        unit=_words(d, "<f2"), factor=1 / 4,
    )  # fmt: skip


def _iq3_s(b):
    d, qs, qh, signs, scales = block_fields(b, 2, 64, 8, 32, 4)
    return dict(
        index=_high(qs, _parts(_words(qh, "u1"), tuple(range(8)), 1)), high_bits=1,
        signs=_words(signs, "u1"), sign_bits=8,
        scale=_parts(_words(scales, "u1"), (0, 4), 15), scale_bits=4,
        unit=_words(d, "<f2"), factor=1.0,
    )  # fmt: skip


def _iq1_s(b):
    d, qs, qh = block_fields(b, 2, 32, 16)
    words = _words(qh, "<u2")
    return dict(
        index=_high(qs, _parts(words, (0, 3, 6, 9), 7)), high_bits=3,
        shifts=_parts(words, (15,), 1),
        scale=_parts(words, (12,), 7), scale_bits=3,
        unit=_words(d, "<f2"), factor=1.0,
    )  # fmt: skip


def _iq1_m(b):
    qs, qh, scales = block_fields(b, 32, 16, 8)
    halves = _words(qh, "u1")
    words = _words(scales, "<u2").reshape(len(b), -1, 4)
    d = (words >> 12 << np.array([0, 4, 8, 12], np.uint16)).sum(-1, dtype=np.uint16)
    return dict(
        index=_high(qs, _parts(halves, (0, 4), 7)), high_bits=3,
        shifts=_parts(halves, (3, 7), 1),
        scale=_parts(words.reshape(len(b), -1), (0, 3, 6, 9), 7), scale_bits=3,
        unit=d.view("<f2"), factor=1.0,
    )  # fmt: skip


def _high(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Indices whose lowest 8 bits are bytes of blocks: (n, indices) uint16."""
    return _words(low, "u1") | high.astype(np.uint16) << 8


TYPES: dict[str, tuple[int, Callable[[np.ndarray], dict]]] = {
    "IQ1_S": (50, _iq1_s),
    "IQ1_M": (56, _iq1_m),
    "IQ2_XXS": (66, _iq2_xxs),
    "IQ2_XS": (74, _iq2_xs),
    "IQ2_S": (82, _iq2_s),
    "IQ3_XXS": (98, _iq3_xxs),
    "IQ3_S": (110, _iq3_s),
}
