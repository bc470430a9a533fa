"""KMeans: w ≈ level[code] with the levels of each row or group by Lloyd's algorithm."""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..core.arguments import check_fields
from ..core.codec import PaddedEncoder
from ..core.fold import Fold
from ..core.leaf import is_encoded
from ..core.matrix_leaf import MatrixLeaf
from ..core.padded import block_of_sums, sum_in_blocks, with_last_column
from .host_packing import cut_packed
from .packing import (
    WIDTHS,
    pack,
    shard_packed,
    shifts,
    slice_packed,
    unpack,
    unpack_parts,
    unpack_rows,
)
from .scaled import check_group, packed_matmul, select_level

LLOYD_STEPS = 16  # more steps change the squared error by less than 1 %


@dataclasses.dataclass(frozen=True)
class KMeans:
    """2^bits f16 levels (2 to 4 bits) for each output channel, or each `group` of its weights.

    With `stats`, the squared error is weighted by E[x²] of the inputs that each weight multiplies;
    `GPTQ` can then choose the codes. The levels take 16 · 2^bits / group bits a weight, so groups
    are for weights with long rows.

    Error: Lloyd's steps start at the middles of 2^bits equal cells and never increase the error. So
    the root mean square error of a group is at most (max − min) / 2^(bits+1), plus
    2^-11 · max |w| for float16. Lloyd, 1982; Kim et al., 2023 (SqueezeLLM).

    Raises:
        ValueError: `bits` is outside 2 to 4, or `group` is below 1.

    Example:
        >>> import jax.numpy as jnp
        >>> w = jnp.array([[0.0], [0.1], [5.0], [5.2], [9.0], [-3.0]])
        >>> [round(float(x), 2) for x in KMeans(2).encode(w).decode()[:, 0]]
        [0.05, 0.05, 5.1, 5.1, 9.0, -3.0]
    """

    bits: int
    _: dataclasses.KW_ONLY
    group: int | None = None
    independent_rows: ClassVar[bool] = True

    def __post_init__(self):
        check_fields(self)
        if self.bits not in (2, 3, 4):
            raise ValueError(f"KMeans takes 2 to 4 bits, got {self.bits}")
        check_group(self)

    def encode(self, w: Any, axes: tuple[int, ...] = (-2,), stats: Any = None) -> "KMeansArray":
        if is_encoded(w):
            return w.map(self.encode)
        return _encode(self, w, tuple(axes), stats)

    def padded_encoder(self):
        def cut(leaf, fold):
            group = min(leaf.group, fold.k) or 1
            codes = cut_packed(leaf.codes, self.bits, fold.n, axis=-2)
            codes = tuple(a[..., : fold.k] for a in codes)
            levels = leaf.levels[..., : -(-fold.k // group), : fold.n]
            changed = dict(codes=codes, levels=levels, group=group, fold=fold)
            return dataclasses.replace(leaf, **changed)

        return PaddedEncoder(lambda matrix, k: _encode(self, matrix, (-1,), None, k), cut)

    def spans(
        self, matrix: Array, stats: Any = None, columns: Array | None = None
    ) -> tuple[Array, None]:
        """The levels that Lloyd's algorithm finds for each group, (*stack, n, groups, 2^bits).

        Columns from `columns` on, if that is given, do not count.
        """
        k = matrix.shape[-1]
        x = self._groups(matrix)
        mass = jnp.ones((1,) * matrix.ndim) if stats is None else stats.diag[..., None, :]
        mass = jnp.broadcast_to(mass, (*mass.shape[:-1], k))
        group = x.shape[-1]
        inside = jnp.arange(k + -k % group).reshape((1,) * (x.ndim - 2) + (-1, group))
        inside = inside < (k if columns is None else columns)
        mass = jnp.where(inside, self._groups(mass), 0.0)
        return lloyd(x, mass, 2**self.bits, block_of_sums(self.group)), None

    def round(self, matrix, levels, zero, fold, dtype) -> "KMeansArray":
        """The leaf with the nearest codes, given levels (*stack, n, groups, 2^bits); no zero."""
        x, levels = self._groups(matrix), levels.astype(jnp.float16)
        codes = _nearest(x, levels.astype(jnp.float32))
        codes = pack(lax.collapse(codes, codes.ndim - 2)[..., : fold.k], self.bits, axis=-2)
        levels = jnp.moveaxis(levels, (-1, -3), (-3, -1))  # (*stack, 2^bits, groups, n)
        return KMeansArray(codes, levels, self.bits, x.shape[-1], fold, jnp.dtype(dtype))

    def snap(self, values: Array, levels: Array, zero: None = None) -> Array:
        """The nearest level to each value (...), given levels (..., 2^bits) as they are decoded."""
        codes = _nearest(values[..., None], levels)[..., 0]
        return select_level(codes, jnp.moveaxis(levels, -1, 0))

    def _groups(self, matrix):
        """The matrix as (*stack, n, groups, group); its last column fills up the last group."""
        k = matrix.shape[-1]
        group = min(self.group or k, k) or 1
        return _padded(matrix, group).reshape(*matrix.shape[:-1], -(-k // group), group)


@functools.partial(jax.jit, static_argnums=(0, 2))
def _encode(codec, w, axes, stats, columns=None):
    """The leaf. Compiled: step by step this would hold several f32 copies of the weight.

    Of a padded matrix the first `columns`, a traced number, are the weight's.
    """
    matrix, fold = Fold.from_weight(w, axes)
    matrix = matrix if columns is None else with_last_column(matrix, columns)
    matrix = matrix.astype(jnp.float32)
    return codec.round(matrix, *codec.spans(matrix, stats, columns), fold, w.dtype)


def lloyd(x: Array, mass: Array, count: int, block: int = 64) -> Array:
    """`count` sorted levels (..., count) for x (..., g), by Lloyd's algorithm.

    They lower the sum of mass · (x − nearest level)² over the last axis; `mass` is (..., g). Sums
    are those of `sum_in_blocks`, so x without mass behind changes nothing.

    Example:
        >>> import jax.numpy as jnp
        >>> lloyd(jnp.array([0.0, 1.0, 8.0, 9.0]), jnp.ones(4), 2).tolist()
        [0.5, 8.5]
    """
    low, high = x.min(-1, keepdims=True), x.max(-1, keepdims=True)
    middles = (jnp.arange(count, dtype=jnp.float32) + 0.5) / count
    middles = middles.reshape((1,) * (x.ndim - 1) + (count,))
    levels = low + (high - low) * middles

    def step(_, levels):
        codes = _nearest(x, levels)

        def centre(i):
            weights = jnp.where(codes == i, mass, 0.0)
            total = sum_in_blocks(weights, block)
            mean = sum_in_blocks(weights * x, block) / jnp.where(total > 0, total, 1)
            return jnp.where(total > 0, mean, jnp.nan)

        # one centre after another, so that only its arrays are in memory
        centres = jnp.moveaxis(lax.map(centre, jnp.arange(count, dtype=jnp.uint8)), 0, -1)
        return jnp.sort(jnp.where(jnp.isnan(centres), levels, centres), -1)

    return lax.fori_loop(0, LLOYD_STEPS, step, levels)


def _nearest(x, levels):
    """The code (uint8) of the nearest level to x (..., g), given sorted levels (..., count)."""
    middles = (levels[..., 1:] + levels[..., :-1]) / 2
    above = [x > middles[..., i, None] for i in range(middles.shape[-1])]
    return functools.reduce(lambda a, b: a + b.astype(jnp.uint8), above, jnp.zeros(x.shape, "u1"))


def _padded(a, group):
    """The array with its last element repeated until `group` divides the last axis."""
    padding = [(0, 0)] * (a.ndim - 1) + [(0, -a.shape[-1] % group)]
    return jnp.pad(a, padding, mode="edge")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class KMeansArray(MatrixLeaf):
    """Codes packed along n, and f16 levels for each row and group."""

    codes: tuple[Array, ...]  # bit fields, each (*stack, n·width/8, k)
    levels: Array  # (*stack, 2^bits, groups, n)
    bits: int = dataclasses.field(metadata=dict(static=True))
    group: int = dataclasses.field(metadata=dict(static=True))
    fold: Fold = dataclasses.field(metadata=dict(static=True))
    dtype: Any = dataclasses.field(metadata=dict(static=True))

    batch_shape = property(lambda self: self.levels.shape[:-3])

    def scales(self) -> Array:
        """The levels, (*stack, groups, n, 2^bits) in f32."""
        return jnp.moveaxis(self.levels, -3, -1).astype(jnp.float32)

    def rows(self):
        codes = unpack(self.codes, self.bits, self.levels.shape[-1], axis=-2)
        return self._values(codes, self.levels)

    def interleaved_rows(self):
        parts = unpack_parts(self.codes, self.bits, self.levels.shape[-1], axis=-2)
        levels = lambda j: self.levels[..., j :: len(parts)]
        return [self._values(codes, levels(j)) for j, codes in enumerate(parts)]

    def _values(self, codes, levels):
        """The levels (*stack, n, k) f32 of codes, by a chain of selections."""
        k = codes.shape[-1]
        wide = lambda a: jnp.repeat(a.mT.astype(jnp.float32), self.group, -1)[..., :k]
        tables = [levels[..., i, :, :] for i in range(2**self.bits)]
        return select_level(codes, [wide(t) for t in tables])

    def slice_rows(self, start, size):
        codes = slice_packed(self.codes, WIDTHS[self.bits], start, size)
        levels = lax.dynamic_slice_in_dim(self.levels, start, size, 2)
        return dataclasses.replace(self, codes=codes, levels=levels)

    def shard_matrix(self, fold, side, parts):
        layout = dict(group=self.group, widths=WIDTHS[self.bits])
        shapes = shard_packed(self.codes, self.levels, fold, side, parts, **layout)
        if shapes is NotImplemented:
            return shapes
        return dataclasses.replace(self, codes=shapes[0], levels=shapes[1], fold=fold)

    def take_rows(self, index):
        flat = index.reshape(-1)
        rows = self._values(unpack_rows(self.codes, self.bits, flat), self.levels[..., flat])
        return rows.reshape(*index.shape, rows.shape[-1])

    def on_chip(self) -> dict[str, Any]:
        """The arguments of a kernel for an unstacked leaf."""
        layout = dict(shifts=tuple(shifts(self.bits)), group=self.group)
        return dict(fields=self.codes, levels=self.levels, values=select_level, **layout)

    def matmul(self, x, precision=None):
        return packed_matmul(x, self, precision=precision)
