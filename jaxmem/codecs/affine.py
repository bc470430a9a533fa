"""Affine: w ≈ step · code + low, with an f16 step and an f16 least weight for each group."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from .cpu_layout import Stranded
from .scale_rounding import divisor, float16_nearest
from .scaled import Scaled, ScaledArray, checked_group, packed, spread


@dataclasses.dataclass(frozen=True)
class Affine(Scaled):
    """Codes of `bits` bits (2 to 8) from each group's least weight upward.

    What `Int(symmetric=False)` does with an integer zero point, with a float instead: 16 bits a
    group where that takes `bits`, and any range. GGUF's Q4_1 and Q5_1 are `Affine(4, group=32)`
    and `Affine(5, group=32)`. The range of a group holds 0.

    Error: |w − decode| ≤ step · (1/2 + 2^(bits−11)) + |low| · 2^-11, and 2^-24 where f16 ends.

    Raises:
        ValueError: bits outside 2 to 8, or a group below 1.

    Example:
        >>> import jax.numpy as jnp
        >>> w = jnp.array([[-1.0], [0.1], [0.65], [2.0]])
        >>> [round(float(x), 2) for x in Affine(4, group=4).encode(w).decode()[:, 0]]
        [-1.0, 0.2, 0.6, 2.0]
    """

    bits: int
    _: dataclasses.KW_ONLY
    group: int | None = None

    def __post_init__(self):
        if self.bits not in range(2, 9):
            raise ValueError(f"Affine takes 2 to 8 bits, got {self.bits}")
        checked_group(self)

    def range(self, low, high):
        low, top = low.astype(jnp.float16), 2**self.bits - 1
        span = (high - low.astype(jnp.float32)).clip(0)
        # Round to the nearest step: then encoding the decoded weight again finds the same step.
        step = float16_nearest(span, float(top))
        return step.astype(jnp.float32), low.astype(jnp.float32)

    def round(self, matrix, scale, zero, fold, dtype):
        group = min(self.group or fold.k, fold.k) or 1
        wide = lambda a: spread(a, group, fold.k)
        scale, low = scale.astype(jnp.float16), zero.astype(jnp.float16)
        codes = packed(self._codes(matrix, wide(scale), wide(low)), self.bits)
        return AffineArray(codes, scale.mT, self.bits, group, fold, jnp.dtype(dtype), low.mT)

    def snap(self, values, scale, zero=None):
        codes = self._codes(values, scale, zero).astype(jnp.float32)
        return codes * scale + zero.astype(jnp.float32)

    def _codes(self, values, scale, low):
        codes = jnp.round((values - low.astype(jnp.float32)) / divisor(scale))
        return jnp.clip(codes, 0, 2**self.bits - 1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AffineArray(ScaledArray):
    """Codes packed along n, steps as `scale`, and the least weights; None for 0."""

    low: Array | None = None  # (*stack, groups, n)

    def values(self, codes):
        return codes.astype(jnp.float32) + (128 if self.bits == 8 else 0)

    def rows(self):
        return self._raised(super().rows(), lambda low: low)

    def interleaved_rows(self):
        parts = super().interleaved_rows()
        mine = lambda j: lambda low: low[..., j :: len(parts)]
        return [self._raised(rows, mine(j)) for j, rows in enumerate(parts)]

    def prepare_for_cpu(self, x):
        rows, low = Stranded.of(self), self.low
        mine = lambda j: 0.0 if low is None else low[:, j :: len(rows.scale)].astype(jnp.float32)
        return rows, rows.raised(x, lambda j, scale: 128 * scale + mine(j))

    def take_rows(self, index):
        return self._raised(
            super().take_rows(index), lambda low: low[:, index.reshape(-1)], index.shape
        )

    def _raised(self, rows, mine, shape=None):
        """`rows` with the least weights added; `mine` picks those of their rows."""
        if self.low is None:
            return rows
        low, k = mine(self.low).astype(jnp.float32).mT, rows.shape[-1]
        low = low if low.shape[-1] == 1 else jnp.repeat(low, self.group, -1)[..., :k]
        return rows + (low if shape is None else low.reshape(*shape, -1))

    def slice_rows(self, start, size):
        cut = lambda a: lax.dynamic_slice_in_dim(a, start, size, 1)
        low = None if self.low is None else cut(self.low)
        return dataclasses.replace(super().slice_rows(start, size), low=low)

    def shard_matrix(self, fold, side, parts):
        own = super().shard_matrix(fold, side, parts)
        low = dataclasses.replace(self, scale=self.low, low=None)
        low = (
            own
            if own is NotImplemented or self.low is None
            else low.shard_matrix(fold, side, parts)
        )
        if low is NotImplemented:
            return low
        return own if self.low is None else dataclasses.replace(own, low=low.scale)

    def on_chip(self) -> dict[str, Any]:
        return super().on_chip() | {"low": self.low}
