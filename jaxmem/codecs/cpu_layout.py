"""CpuRows: packed integers in the layout that a CPU decodes fastest, a tile of rows at a time."""

import dataclasses
from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..core.fold import Fold
from ..kernels.decoded_tiles import interleave
from .packing import WIDTHS, centred_parts, slice_packed

# One cache line. Rows whose distance is a power of two would compete for one place in the cache.
PADDING_FLOATS = 16


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CpuRows:
    """The rows scale · (code − 2^(bits−1)) of an unstacked leaf of packed integers.

    The rows are in interleaved parts (see `packing`). Each part has its own scales, (groups, rows
    of the part + PADDING_FLOATS) f32, which multiply the codes of `centred_parts`.
    """

    codes: tuple[Array, ...]  # bit fields, each (n·width/8, k)
    scale: list[Array]  # one array for each part
    bits: int = dataclasses.field(metadata=dict(static=True))
    group: int = dataclasses.field(metadata=dict(static=True))
    n: int = dataclasses.field(metadata=dict(static=True))
    fold: Fold = dataclasses.field(metadata=dict(static=True))

    @classmethod
    def from_leaf(cls, leaf: Any) -> Self:
        """The rows of an unstacked leaf with `codes`, `scale`, `bits`, `group` and `fold`."""
        bits, n = leaf.bits, leaf.scale.shape[-1]
        parts = max(1, min(n, 8 // min(WIDTHS[bits])))
        scale = leaf.scale.astype(jnp.float32) * 2.0 ** (bits - 8)
        scale = [jnp.pad(scale[:, j::parts], ((0, 0), (0, PADDING_FLOATS))) for j in range(parts)]
        return cls(leaf.codes, scale, bits, leaf.group, n, leaf.fold)

    def slice_rows(self, start: Array, size: int) -> Self:
        """Rows [start, start + size); `start` is a multiple of 8."""
        parts = len(self.scale)
        codes = slice_packed(self.codes, WIDTHS[self.bits], start, size)
        cut = lambda a: lax.dynamic_slice_in_dim(a, start // parts, -(-size // parts), 1)
        return dataclasses.replace(self, codes=codes, scale=list(map(cut, self.scale)), n=size)

    def interleaved_rows(self) -> list[Array]:
        """The interleaved parts of the rows, each (rows of the part, k) f32."""

        def rows(codes, scale):
            n, k = codes.shape
            scale = scale[:, :n].T
            scale = scale if scale.shape[-1] == 1 else jnp.repeat(scale, self.group, -1)[:, :k]
            return codes.astype(jnp.float32) * scale

        return list(map(rows, centred_parts(self.codes, self.bits, self.n, axis=-2), self.scale))

    def times_group_values(self, x: Array, group_values: Callable[[int, Array], Array]) -> Array:
        """x (m, k) times rows whose weights have one value in each group: (m, n) f32.

        `group_values(j, scale)` returns the values (groups, rows) f32 of part j, and is given the
        scales of the part, which multiply the codes of `centred_parts`.
        """
        (m, k), groups = x.shape, len(self.scale[0])
        x = jnp.pad(x.astype(jnp.float32), ((0, 0), (0, groups * self.group - k)))
        sums = x.reshape(m, groups, self.group).sum(-1)
        scales = (a[:, : a.shape[1] - PADDING_FLOATS] for a in self.scale)
        return interleave([sums @ group_values(j, scale) for j, scale in enumerate(scales)], -1)
