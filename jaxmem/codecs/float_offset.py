"""Affine: w ≈ step · code + low, with a float16 step and a float16 `low` for each group."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..core.arguments import check_fields
from .cpu_layout import CpuRows
from .float16_scales import divisor, float16_nearest
from .scaled import Scaled, ScaledArray, check_group, pack_rows, repeat_groups


@dataclasses.dataclass(frozen=True)
class Affine(Scaled):
    """Codes of `bits` bits (2 to 8) that count upward from each group's smallest weight.

    `Int(symmetric=False)` has an integer zero point of `bits` bits in each group; this codec has a
    float16 of 16 bits instead, which fits any range. GGUF's Q4_1 and Q5_1 are
    `Affine(4, group=32)` and `Affine(5, group=32)`. The range of a group always includes 0.

    Error: |w − decode| ≤ step · (1/2 + 2^(bits−11)) + |low| · 2^-11, plus 2^-24 below normal f16.

    Raises:
        ValueError: `bits` is outside 2 to 8, or `group` is below 1.

    Example:
        >>> import jax.numpy as jnp
        >>> w = jnp.array([[-1.0], [0.1], [0.65], [2.0]])
        >>> [round(float(x), 2) for x in Affine(4, group=4).encode(w).decode()[:, 0]]
        [-1.0, 0.2, 0.6, 2.0]
    """

    bits: int
    _: dataclasses.KW_ONLY
    group: int | None = None
    independent_rows: ClassVar[bool] = True
    ignores_zeros: ClassVar[bool] = True  # the range of a group includes 0

    def __post_init__(self):
        check_fields(self)
        if self.bits not in range(2, 9):
            raise ValueError(f"Affine takes 2 to 8 bits, got {self.bits}")
        check_group(self)

    def range(self, low, high):
        low, top = low.astype(jnp.float16), 2**self.bits - 1
        span = (high - low.astype(jnp.float32)).clip(0)
        # Round to the nearest step: then encoding the decoded weight again finds the same step.
        step = float16_nearest(span, float(top))
        return step.astype(jnp.float32), low.astype(jnp.float32)

    def round(self, matrix, scale, zero, fold, dtype):
        group = min(self.group or fold.k, fold.k) or 1
        wide = lambda a: repeat_groups(a, group, fold.k)
        scale, low = scale.astype(jnp.float16), zero.astype(jnp.float16)
        codes = pack_rows(self._codes(matrix, wide(scale), wide(low)), self.bits)
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
    """Codes packed along n, steps as `scale`, and the smallest weights, or None if they are 0."""

    low: Array | None = None  # (*stack, groups, n)

    @property
    def middle_code(self) -> int:
        """The stored code of a group's smallest weight."""
        return -128 if self.bits == 8 else 0

    def values(self, codes):
        return codes.astype(jnp.float32) + (128 if self.bits == 8 else 0)

    def rows(self):
        return self._plus_low(super().rows(), lambda low: low)

    def interleaved_rows(self):
        parts = super().interleaved_rows()
        part = lambda j: lambda low: low[..., j :: len(parts)]
        return [self._plus_low(rows, part(j)) for j, rows in enumerate(parts)]

    def prepare_for_cpu(self, x):
        rows = CpuRows.from_leaf(self)

        def group_values(j, scale):
            """The values of codes 2^(bits−1) in part j, for which `CpuRows` has zeros."""
            low = 0.0 if self.low is None else self.low[:, j :: len(rows.scale)].astype(jnp.float32)
            return 128 * scale + low

        return rows, rows.times_group_values(x, group_values)

    def take_rows(self, index):
        return self._plus_low(
            super().take_rows(index), lambda low: low[:, index.reshape(-1)], index.shape
        )

    def _plus_low(self, rows, select, shape=None):
        """`rows` plus their smallest weights; `select` takes those of the rows from `low`."""
        if self.low is None:
            return rows
        low, k = select(self.low).astype(jnp.float32).mT, rows.shape[-1]
        low = low if low.shape[-1] == 1 else jnp.repeat(low, self.group, -1)[..., :k]
        return rows + (low if shape is None else low.reshape(*shape, low.shape[-1]))

    def cut(self, fold):
        leaf = super().cut(fold)
        return dataclasses.replace(leaf, low=self.low[..., : leaf.scale.shape[-2], : fold.n])

    def slice_rows(self, start, size):
        low = self.low
        low = None if low is None else lax.dynamic_slice_in_dim(low, start, size, 1)
        return dataclasses.replace(super().slice_rows(start, size), low=low)

    def shard_matrix(self, fold, side, parts):
        shapes = super().shard_matrix(fold, side, parts)
        if shapes is NotImplemented or self.low is None:
            return shapes
        # `low` is divided as `scale` is.
        low = dataclasses.replace(self, scale=self.low, low=None).shard_matrix(fold, side, parts)
        return low if low is NotImplemented else dataclasses.replace(shapes, low=low.scale)

    def on_chip(self) -> dict[str, Any]:
        return super().on_chip() | {"low": self.low}
