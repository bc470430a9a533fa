"""Stranded: packed integers as a CPU decodes them fastest, a tile of rows at a time."""

import dataclasses
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..folding import Fold
from .packing import WIDTHS, centred

_APART = 16  # floats of a cache line: what lies a power of two apart shares a place in the cache


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stranded:
    """Rows (n, k) of an `IntArray` as sums of scale · code and low, which every tile finds ready.

    Each strand has its scales and, where there are zero points, its lows: (groups, rows and
    _APART) f32, to go with codes that are `centred`.
    """

    codes: tuple[Array, ...]  # bit fields, each (n·width/8, k)
    scale: list[Array]
    low: list[Array]
    bits: int = dataclasses.field(metadata=dict(static=True))
    group: int = dataclasses.field(metadata=dict(static=True))
    n: int = dataclasses.field(metadata=dict(static=True))
    fold: Fold = dataclasses.field(metadata=dict(static=True))

    @classmethod
    def of(cls, leaf: Any) -> Self:
        """The rows of an unstacked `IntArray`, exactly."""
        bits, n = leaf.bits, leaf.scale.shape[-1]
        count = max(1, min(n, 8 // min(WIDTHS[bits])))
        scale = leaf.scale.astype(jnp.float32) * 2.0 ** (bits - 8)
        scale, low = [scale[:, j::count] for j in range(count)], []
        if leaf.zero is not None:
            zero = centred(leaf.zero, bits, n, axis=-1)
            low = [-z.astype(jnp.float32) * s for z, s in zip(zero, scale)]
        scale, low = ([jnp.pad(a, ((0, 0), (0, _APART))) for a in each] for each in (scale, low))
        return cls(leaf.codes, scale, low, bits, leaf.group, n, leaf.fold)

    def narrow(self, start: Array, size: int) -> Self:
        cut, count = lax.dynamic_slice_in_dim, len(self.scale)
        mine = lambda parts: [cut(a, start // count, -(-size // count), 1) for a in parts]
        codes = tuple(
            cut(a, start * w // 8, -(-size * w // 8)) for a, w in zip(self.codes, WIDTHS[self.bits])
        )
        scale, low = mine(self.scale), mine(self.low)
        return dataclasses.replace(self, codes=codes, scale=scale, low=low, n=size)

    def strands(self) -> list[Array]:
        def times(codes, scale):
            return codes.astype(jnp.float32) * self._spread(scale, codes)

        codes = centred(self.codes, self.bits, self.n, axis=-2)
        rows = [times(part, scale) for part, scale in zip(codes, self.scale)]
        lows = [self._spread(low, part) for part, low in zip(codes, self.low)]
        return [r + low for r, low in zip(rows, lows)] if lows else rows

    def _spread(self, a, codes):
        """One number for each group and row, for each code of the strand."""
        rows, k = codes.shape
        a = a[:, :rows].T
        return a if a.shape[-1] == 1 else jnp.repeat(a, self.group, -1)[:, :k]
