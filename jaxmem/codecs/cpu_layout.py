"""Stranded: packed integers as a CPU decodes them fastest, a tile of rows at a time."""

import dataclasses
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..core.fold import Fold
from ..kernels.tiled_matmul import interleave
from .packing import WIDTHS, centred

_APART = 16  # floats of a cache line: what lies a power of two apart shares a place in the cache


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stranded:
    """Rows scale · (code − 2^(bits−1)) of packed integers, scales ready for tile after tile.

    Each strand has its scales, (groups, rows and _APART) f32, to go with codes that are `centred`.
    """

    codes: tuple[Array, ...]  # bit fields, each (n·width/8, k)
    scale: list[Array]
    bits: int = dataclasses.field(metadata=dict(static=True))
    group: int = dataclasses.field(metadata=dict(static=True))
    n: int = dataclasses.field(metadata=dict(static=True))
    fold: Fold = dataclasses.field(metadata=dict(static=True))

    @classmethod
    def of(cls, leaf: Any) -> Self:
        """The rows of an unstacked leaf with `codes`, `scale`, `bits`, `group` and `fold`."""
        bits, n = leaf.bits, leaf.scale.shape[-1]
        count = max(1, min(n, 8 // min(WIDTHS[bits])))
        scale = leaf.scale.astype(jnp.float32) * 2.0 ** (bits - 8)
        scale = [jnp.pad(scale[:, j::count], ((0, 0), (0, _APART))) for j in range(count)]
        return cls(leaf.codes, scale, bits, leaf.group, n, leaf.fold)

    def slice_rows(self, start: Array, size: int) -> Self:
        cut, count = lax.dynamic_slice_in_dim, len(self.scale)
        codes = tuple(
            cut(a, start * w // 8, -(-size * w // 8)) for a, w in zip(self.codes, WIDTHS[self.bits])
        )
        scale = [cut(a, start // count, -(-size // count), 1) for a in self.scale]
        return dataclasses.replace(self, codes=codes, scale=scale, n=size)

    def interleaved_rows(self) -> list[Array]:
        def rows(codes, scale):
            n, k = codes.shape
            scale = scale[:, :n].T
            scale = scale if scale.shape[-1] == 1 else jnp.repeat(scale, self.group, -1)[:, :k]
            return codes.astype(jnp.float32) * scale

        return list(map(rows, centred(self.codes, self.bits, self.n, axis=-2), self.scale))

    def raised(self, x: Array, lows: Any) -> Array:
        """x (m, k) times rows of `lows(j, scale)` for each group, (groups, rows) f32: (m, n) f32.

        `scale` is that of strand j, of codes that are `centred`.
        """
        (m, k), groups = x.shape, len(self.scale[0])
        x = jnp.pad(x.astype(jnp.float32), ((0, 0), (0, groups * self.group - k)))
        sums = x.reshape(m, groups, self.group).sum(-1)
        scales = (a[:, : a.shape[1] - _APART] for a in self.scale)
        return interleave([sums @ lows(j, scale) for j, scale in enumerate(scales)], -1)
