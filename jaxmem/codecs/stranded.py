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
    """Rows (n, k) of packed integers as scale · code + low, which every tile finds ready.

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
    def of(cls, leaf: Any, lows=None) -> Self:
        """The rows of an unstacked leaf of scale · (code − 2^(bits−1)) + low.

        `lows` gives the lows of the strands, (groups, rows) f32, of their scales.
        """
        bits, n = leaf.bits, leaf.scale.shape[-1]
        count = max(1, min(n, 8 // min(WIDTHS[bits])))
        scale = leaf.scale.astype(jnp.float32)
        scale = [scale[:, j::count] for j in range(count)]
        low = [] if lows is None else lows(scale)
        ready = lambda parts, unit=1.0: [jnp.pad(a * unit, ((0, 0), (0, _APART))) for a in parts]
        scale = ready(scale, 2.0 ** (bits - 8))
        return cls(leaf.codes, scale, ready(low), bits, leaf.group, n, leaf.fold)

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
