"""An encoded layer as GGUF blocks: the block type that stores its codes exactly, and its bytes."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from ..codecs.cast import CastArray
from ..codecs.double_quantized_scales import DoubleQuantArray
from ..codecs.float_offset import AffineArray
from ..codecs.integer import IntArray
from ..core.fold import Fold
from ..core.leaf import is_encoded
from . import gguf_k_quants
from .layer_codes import (
    has_fold,
    limits,
    matrix,
    numbers,
    repeat_groups,
    stored_array,
    unwrap,
    unwrap_inputs,
)

BLOCK = 32  # weights that share a scale, but in a K-quant
TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "BF16": 30}
TYPES |= {"Q2_K": 10, "Q3_K": 11, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14}
_SIZES = {"F32": 128, "F16": 64, "BF16": 64, "Q4_0": 18, "Q4_1": 20, "Q5_0": 22, "Q5_1": 24}
_SIZES["Q8_0"] = 34  # bytes of 32 weights
_SIZES |= {name: size / 8 for name, size in gguf_k_quants.BYTES.items()}
_DENSE = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16)}
_RANGES = {"Q4_0": (-8, 7), "Q5_0": (-16, 15), "Q8_0": (-128, 127)}  # integers stored


def nbytes(kind: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor of a type and shape in the file.

    Example:
        >>> nbytes("Q4_0", (2, 64))
        72
    """
    return int(math.prod(shape) * _SIZES[kind]) // BLOCK


def kind(leaf: Any, fold: Fold | None, half: bool) -> str:
    """The GGUF type that a parameter is written in.

    `fold` maps its axes to rows and columns; it is None for a vector. Vectors are F32, as
    llama.cpp requires. Float matrices without an exact type are F16 if `half`, else F32.
    """
    if fold is None:
        return "F32"
    wide = "F16" if half else "F32"
    if isinstance(leaf, CastArray) or not is_encoded(leaf):
        dtype = leaf.values.dtype if isinstance(leaf, CastArray) else leaf.dtype
        if jnp.dtype(dtype) == jnp.bfloat16:
            return "BF16"
        return "F32" if not half and jnp.finfo(dtype).bits > 16 else "F16"
    leaf = unwrap_inputs(leaf)
    is_k_quant = isinstance(leaf, DoubleQuantArray) and has_fold(leaf, fold)
    k_quant = gguf_k_quants.kind(leaf) if is_k_quant else None
    return k_quant or _simple_kind(jax.eval_shape(unwrap, leaf), fold, wide)  # also of shapes


def _simple_kind(leaf: Any, fold: Fold, wide: str) -> str:
    """The type of blocks of 32 weights with one f16 scale, or `wide` if none is exact."""
    has_codes = isinstance(leaf, IntArray | AffineArray) and has_fold(leaf, fold)
    if not has_codes or not _has_block_scales(leaf):
        return wide
    if isinstance(leaf, AffineArray):
        block_type = "Q4_1" if leaf.bits <= 4 else "Q5_1"
        return block_type if leaf.bits <= 5 and leaf.low is not None else wide
    low, high = limits(leaf)
    fitting = (name for name, (a, b) in _RANGES.items() if a <= low and high <= b)
    return next(fitting, wide)


def data(leaf: Any, kind: str) -> np.ndarray:
    """The bytes of one layer (rows, bytes); for a float type its numbers, in the layer's shape.

    Raises:
        ValueError: a number is NaN, infinite or beyond the range of the float type.
    """
    if kind in _DENSE:
        dense = stored_array(leaf)
        with np.errstate(over="ignore"):
            stored = np.asarray(dense, _DENSE[kind])
        if not np.isfinite(stored.astype(np.float32)).all():
            raise ValueError(f"it holds NaN, infinity or a number beyond {_DENSE[kind]}")
        return stored
    leaf = unwrap_inputs(leaf)
    if kind.endswith("_K"):
        return gguf_k_quants.data(leaf)
    leaf = unwrap(leaf)
    parts = [gguf_k_quants.half(repeat_groups(leaf, leaf.scale, BLOCK))]
    if isinstance(leaf, AffineArray):
        parts.append(gguf_k_quants.half(repeat_groups(leaf, leaf.low, BLOCK)))
        codes = matrix(leaf)
    else:
        codes = numbers(leaf) - np.int16(_RANGES[kind][0])
    codes = codes.astype(np.uint8).reshape(len(codes), -1, BLOCK)
    if kind == "Q8_0":
        parts.append(codes ^ 128)
    else:
        if kind.startswith("Q5"):
            parts.append(np.packbits(codes >> 4, axis=-1, bitorder="little"))
        first, second = codes[..., : BLOCK // 2] & 15, codes[..., BLOCK // 2 :] & 15
        parts.append(first | second << 4)
    return np.concatenate(parts, -1).reshape(len(codes), -1)


def _has_block_scales(leaf: IntArray | AffineArray) -> bool:
    """Whether every 32 columns of a row have one f16 scale."""
    divides = leaf.scale.shape[-2] == 1 or leaf.group % BLOCK == 0
    return divides and leaf.fold.k % BLOCK == 0 and leaf.scale.dtype == jnp.float16
