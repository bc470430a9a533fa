"""Codebook: w ≈ scale · level[code] with a table of at most sixteen fixed levels: NF4, FP4."""

import dataclasses
import functools
import itertools
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array

from ..core.arguments import check_fields
from .float16_scales import divisor, float16_above
from .scaled import Scaled, ScaledArray, check_group, pack_rows, repeat_groups

# Quantiles of the normal distribution, with an exact zero (Dettmers et al., 2023, appendix E).
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
# The numbers of e2m1 over the largest, as a sorted table with one zero.
_MAGNITUDES = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
FP4 = (*(-m / 6 for m in reversed(_MAGNITUDES)), 0.0, *(m / 6 for m in _MAGNITUDES))
LEVELS = {"nf4": NF4, "fp4": FP4}
# Tables of other tools' files, which are decoded and not encoded. bitsandbytes' FP4 has 1/192 where
# e2m1 has 1/12, and two zeros.
_BNB_MAGNITUDES = (0.0, 0.0625, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
BNB_FP4 = (*(-m / 12 for m in reversed(_BNB_MAGNITUDES)), *(m / 12 for m in _BNB_MAGNITUDES))
# ggml's levels of IQ4_NL and IQ4_XS.
_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
TABLES = LEVELS | {"bnb_fp4": BNB_FP4, "iq4": tuple(map(float, _IQ4))}


@dataclasses.dataclass(frozen=True)
class Codebook(Scaled):
    """The nearest of a table's levels in [−1, 1], times a float16 scale: the largest weight.

    "nf4" has quantiles of the normal distribution, "fp4" the numbers of e2m1 over 6. There is one
    scale for each output channel, or for each `group` weights along the summed axes.

    Error: |w − decode| ≤ scale · half the widest gap between levels: 0.152 (nf4), 1/6 (fp4).
    Dettmers et al., 2023 (QLoRA). See `DoubleQuant` for its quantized scales.

    Raises:
        ValueError: `levels` names no table, or `group` is below 1.

    Example:
        >>> import jax.numpy as jnp
        >>> w = jnp.array([[2.0], [0.2], [-0.7], [0.0]])
        >>> [round(float(x), 3) for x in Codebook("nf4").encode(w).decode()[:, 0]]
        [2.0, 0.159, -0.79, 0.0]
    """

    levels: str
    _: dataclasses.KW_ONLY
    group: int | None = None
    independent_rows: ClassVar[bool] = True
    ignores_zeros: ClassVar[bool] = True  # the range of a group includes 0

    def __post_init__(self):
        check_fields(self)
        if self.levels not in LEVELS:
            raise ValueError(f"Codebook takes one of {', '.join(LEVELS)}, got {self.levels!r}")
        check_group(self)

    def range(self, low, high):
        return float16_above(jnp.maximum(-low, high)).astype(jnp.float32), None

    def round(self, matrix, scale, zero, fold, dtype):
        group = min(self.group or fold.k, fold.k) or 1
        stored = scale.astype(jnp.float16)
        ratio = matrix / repeat_groups(divisor(stored), group, fold.k)
        codes = pack_rows(nearest_level(ratio, LEVELS[self.levels]), 4)
        return CodebookArray(codes, stored.mT, 4, group, fold, jnp.dtype(dtype), self.levels)

    def snap(self, values, scale, zero=None):
        levels = LEVELS[self.levels]
        return level(nearest_level(values / divisor(scale), levels), levels) * scale


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CodebookArray(ScaledArray):
    """4-bit codes packed along n, float16 scales, and the name of the table."""

    levels: str = dataclasses.field(metadata=dict(static=True))

    def values(self, codes):
        return level(codes, TABLES[self.levels])


def level(codes: Array, levels: tuple[float, ...]) -> Array:
    """levels[codes] in f32 without a gather: each bit of a code selects a half of the levels.

    Example:
        >>> import jax.numpy as jnp
        >>> level(jnp.array([1, 0, 2], jnp.int8), (0.5, 1.5, 4.0)).tolist()
        [1.5, 0.5, 4.0]
    """
    if len(levels) == 1:
        return jnp.full(codes.shape, levels[0], jnp.float32)
    half = 1 << (len(levels) - 1).bit_length() - 1
    low, high = (level(codes, part) for part in (levels[:half], levels[half:]))
    return jnp.where(codes & half != 0, high, low)


def nearest_level(x: Array, levels: tuple[float, ...]) -> Array:
    """The code (uint8) of the level nearest to x (f32); `levels` are sorted.

    Example:
        >>> import jax.numpy as jnp
        >>> nearest_level(jnp.array([0.1, 0.9]), (0.0, 0.5, 1.0)).tolist()
        [0, 2]
    """
    middles = [(a + b) / 2 for a, b in itertools.pairwise(levels)]
    above = lambda y, middle: y + (x > middle).astype(jnp.uint8)
    return functools.reduce(above, middles, jnp.zeros(x.shape, jnp.uint8))
