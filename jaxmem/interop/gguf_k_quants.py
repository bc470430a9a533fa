"""A weight with the scales of a K-quant as blocks of a GGUF file: the inverse of gguf_blocks."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from ..codecs.double_quantized_scales import DoubleQuantArray
from ..codecs.float_offset import AffineArray
from ..codecs.integer import IntArray
from ..solvers.k_quant import FORMS, SUPER_BLOCK
from . import layer_codes

BYTES = {"Q2_K": 84, "Q3_K": 110, "Q4_K": 144, "Q5_K": 176, "Q6_K": 210}  # of 256 weights


def kind(leaf: DoubleQuantArray) -> str | None:
    """The type of blocks that holds the leaf exactly, or None."""
    inner, form = leaf.inner, FORMS.get(leaf.bits)
    low = getattr(inner, "low", None)
    if form is None or not isinstance(inner, AffineArray if form.has_low else IntArray):
        return None
    if inner.group != form.group or leaf.fold.k % SUPER_BLOCK or form.has_low != (low is not None):
        return None
    scales = (inner.scale, low) if form.has_low else (inner.scale,)
    per = SUPER_BLOCK // form.group
    for part in scales:
        if not isinstance(part, AffineArray if form.has_low else IntArray):
            return None
        has_units = getattr(part, "low", None) is None and part.scale.dtype == jnp.float16
        if not has_units or (part.bits, part.group) != (form.scale_bits, per):
            return None
    is_signed = form.has_low or (inner.zero is None and inner.scale.zero is None)
    return f"Q{leaf.bits}_K" if is_signed else None


def data(leaf: DoubleQuantArray) -> np.ndarray:
    """The bytes (n, bytes of a row) of an unstacked leaf that `kind` names a type for."""
    inner = leaf.inner
    codes = layer_codes.matrix(inner).astype(np.uint8)
    codes = codes.reshape(len(codes), -1, SUPER_BLOCK)
    scale, unit = _scales(inner.scale)
    if not FORMS[leaf.bits].has_low:
        blocks = (_q3_k if leaf.bits == 3 else _q6_k)(codes, scale, half(unit))
    else:
        low, low_unit = _scales(inner.low)
        units = half(unit), half(-low_unit)  # a file has minus the smallest weight
        blocks = {2: _q2_k, 4: _q4_k, 5: _q5_k}[leaf.bits](codes, scale, low, *units)
    return np.concatenate(blocks, -1).reshape(len(codes), -1)


def _scales(leaf: Any) -> tuple[np.ndarray, np.ndarray]:
    """(unsigned codes (n, blocks, groups of a block) uint8, units (n, blocks) f16) of scales."""
    codes = layer_codes.matrix(leaf).astype(np.uint8)
    return codes.reshape(len(codes), -1, leaf.group), np.asarray(leaf.scale).T


def half(numbers: np.ndarray) -> np.ndarray:
    """f16 numbers (n, blocks) as bytes (n, blocks, 2)."""
    return np.ascontiguousarray(numbers.astype("<f2"))[..., None].view(np.uint8)


def _planes(codes: np.ndarray, bits: int, run: int) -> np.ndarray:
    """Bytes from codes (n, blocks, 256): `run` codes are the lowest `bits` of bytes, and so on."""
    per_byte = 8 // bits
    parts = codes.reshape(*codes.shape[:2], -1, per_byte, run)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    return np.bitwise_or.reduce(parts << shifts, -2).reshape(*codes.shape[:2], -1)


# Each function below gives the fields of blocks of one type, as bytes (n, blocks, bytes).


def _q2_k(codes, scale, low, unit, low_unit):
    return scale | low << 4, _planes(codes, 2, 32), unit, low_unit


def _q3_k(codes, scale, unit):
    scales = _planes(scale & 15, 4, 8), _planes(scale >> 4, 2, 4)
    return _planes(codes >> 2, 1, 32), _planes(codes & 3, 2, 32), *scales, unit


def _six_bits(scale, low):
    """The scales and minima of a block of Q4_K or Q5_K in 12 bytes."""
    first, last = (scale[..., :4], low[..., :4]), (scale[..., 4:], low[..., 4:])
    high = [a | b >> 4 << 6 for a, b in zip(first, last)]
    return np.concatenate([*high, last[0] & 15 | (last[1] & 15) << 4], -1)


def _q4_k(codes, scale, low, unit, low_unit):
    return unit, low_unit, _six_bits(scale, low), _planes(codes, 4, 32)


def _q5_k(codes, scale, low, unit, low_unit):
    planes = _planes(codes >> 4, 1, 32), _planes(codes & 15, 4, 32)
    return unit, low_unit, _six_bits(scale, low), *planes


def _q6_k(codes, scale, unit):
    return _planes(codes & 15, 4, 64), _planes(codes >> 4, 2, 32), scale ^ 128, unit
