"""NM: n of every m neighbours, whose places p₀ < p₁ < … are one number, Σ C(pᵢ, i + 1)."""

import dataclasses
import functools
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..core.leaf import divided_shape
from ..kernels.dispatch import on_one_chip
from ..kernels.nm_matmul import nm_product, supports
from ..kernels.tiled_matmul import UNROLLED_TILES, decoded_product
from .packing import WIDTHS, pack, shifts, unpack, unpack_rows
from .scaled import selected
from .sparse import (
    Count,
    Sparse,
    SparseArray,
    compressed,
    highest,
    kept_of,
    narrow_values,
    pick_values,
    value_rows,
)


@dataclasses.dataclass(frozen=True)
class NM(Sparse):
    """Keeps the `n` largest of every `m` weights along the summed axes: 2:4, 1:4, 4:8.

    Which ones is the number of their pattern among C(m, n): 3 bits for 4 weights at 2:4 (two
    indices of two bits would be 4), 2 bits for 4 at 1:4, 7 bits for 8 at 4:8. So 2:4 takes .5 of
    f32 and .75 bits a weight. What stays is exact, or encoded by what follows in a `Chain`. A form
    to store: a product decodes it some rows at a time. Mishra et al., 2021 (2:4).

    Raises:
        ValueError: not 0 < n < m, more than 256 patterns, or weights that m does not divide.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> w = jnp.array([[0.1], [-3.0], [2.0], [0.5]])
        >>> NM(2, 4).encode(w).decode()[:, 0].tolist()
        [0.0, -3.0, 2.0, 0.0]
        >>> jm.nbytes(NM(2, 4).encode(jnp.ones((64, 64)))) * 8 / 64**2  # bits a weight
        16.75
    """

    n: int
    m: int
    independent_rows: ClassVar[bool] = True

    def __post_init__(self):
        if not 0 < self.n < self.m:
            raise ValueError(f"NM keeps n of m weights, 0 < n < m, got {self.n}:{self.m}")
        if math.comb(self.m, self.n) > 256:
            patterns = math.comb(self.m, self.n)
            raise ValueError(f"{self.n}:{self.m} has {patterns} patterns, expected at most 256")

    @property
    def bits(self) -> int:
        """Bits of a pattern's number."""
        return (math.comb(self.m, self.n) - 1).bit_length()

    def mask(self, scores, count: Count = kept_of):
        return highest(self._groups(scores), count(self.m, self.n)).reshape(scores.shape)

    def hold(self, matrix, mask, fold, dtype):
        values, _ = compressed(self._groups(matrix), self._groups(mask), self.n)
        values = values.reshape(*matrix.shape[:-1], -1)
        codes = pack(pattern(self._groups(mask), self.n).astype(jnp.uint8), self.bits, axis=-2)
        return NMArray(values.astype(dtype), fold, jnp.dtype(dtype), codes, self.n, self.m)

    def _groups(self, matrix):
        k = matrix.shape[-1]
        if k % self.m:
            raise ValueError(f"{self.n}:{self.m} takes rows of a multiple of {self.m}, got {k}")
        return matrix.reshape(*matrix.shape[:-1], k // self.m, self.m)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NMArray(SparseArray):
    """Values (*stack, rows, n · groups) and the pattern of each group, packed along the rows."""

    codes: tuple[Array, ...]  # bit fields, each (*stack, rows·width/8, groups)
    n: int = dataclasses.field(metadata=dict(static=True))
    m: int = dataclasses.field(metadata=dict(static=True))

    bits = property(lambda self: NM(self.n, self.m).bits)

    def rows(self):
        values = value_rows(self.values)
        codes = unpack(self.codes, self.bits, values.shape[-2], axis=-2)
        return self._dense(codes, values)

    def _dense(self, codes, values):
        codes = codes.astype(jnp.int32) + (128 if self.bits == 8 else 0)
        values = values.reshape(*codes.shape, self.n)
        dense = spread_pattern(codes, [values[..., i] for i in range(self.n)], self.m)
        return dense.reshape(*codes.shape[:-1], -1)

    def slice_rows(self, start, size):
        def cut(field, width):
            return lax.dynamic_slice_in_dim(field, start * width // 8, -(-size * width // 8), 0)

        codes = tuple(cut(a, w) for a, w in zip(self.codes, WIDTHS[self.bits]))
        return dataclasses.replace(
            self, values=narrow_values(self.values, start, size), codes=codes
        )

    def shard_matrix(self, fold, side, parts):
        axis = -2 if side == "kept" else -1
        split = fold.n * math.gcd(*WIDTHS[self.bits]) % 8 if side == "kept" else fold.k % self.m
        values = NotImplemented if split else divided_shape(self.values, axis, parts)
        if values is NotImplemented:
            return values
        codes = tuple(divided_shape(a, axis, parts) for a in self.codes)
        return dataclasses.replace(self, values=values, codes=codes, fold=fold)

    def matmul(self, x, precision=None):
        return _matmul(x, self, precision)

    def on_chip(self) -> dict[str, Any] | None:
        """What a kernel takes of an unstacked leaf; None where it cannot read it."""
        values = self.values
        if not isinstance(values, Array):
            values = values.on_chip() if hasattr(values, "on_chip") else None
        if (
            values is None
            or self.bits == 8
            or not supports(self.n, self.codes[0].shape[-1], values)
        ):
            return None
        how = dict(shifts=tuple(shifts(self.bits)), n=self.n, m=self.m, spread=planes)
        return dict(fields=self.codes, values=values, **how)

    def take_rows(self, index):
        at = index.reshape(-1)
        rows = self._dense(unpack_rows(self.codes, self.bits, at), pick_values(self.values, at))
        return rows.reshape(*index.shape, self.fold.k)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _matmul(x, leaf, precision):
    """x (rows, k) . rows^T in f32, by what is fast where it runs."""
    decoded = functools.partial(decoded_product, precision=precision)
    elsewhere = functools.partial(decoded, unrolled=UNROLLED_TILES)
    if leaf.on_chip():
        kernel = lambda x, leaf: nm_product(x, **leaf.on_chip(), precision=precision)
        elsewhere = functools.partial(on_one_chip, kernel, elsewhere)
    return lax.platform_dependent(x, leaf, cpu=decoded, default=elsewhere)


@_matmul.defjvp
def _matmul_jvp(precision, primals, tangents):
    decoded = functools.partial(decoded_product, precision=precision)
    return _matmul(*primals, precision), jax.jvp(decoded, primals, tangents)[1]


def pattern(mask: Array, n: int) -> Array:
    """The number of each pattern of n places in the last axis of `mask`: int32 below C(m, n).

    Example:
        >>> import jax.numpy as jnp
        >>> patterns = jnp.array([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]], bool)
        >>> pattern(patterns, 2).tolist()
        [0, 2, 5]
    """
    count = jnp.zeros(mask.shape[:-1], jnp.int32)
    number = jnp.zeros(mask.shape[:-1], jnp.int32)
    for place in range(mask.shape[-1]):
        own = [float(math.comb(place, i + 1)) for i in range(n)]
        here = mask[..., place]
        number += jnp.where(here, selected(count, own).astype(jnp.int32), 0)
        count += here.astype(jnp.int32)
    return number


def spread_pattern(numbers: Array, values: list[Array], m: int) -> Array:
    """Groups (..., m) with `values`, each (...), at the places of patterns `numbers`, else zero.

    Example:
        >>> import jax.numpy as jnp
        >>> spread_pattern(jnp.array([2]), [jnp.array([5.0]), jnp.array([7.0])], 4).tolist()
        [[0.0, 5.0, 7.0, 0.0]]
    """
    return jnp.stack(planes(numbers, values, m), -1)


def planes(numbers: Array, values: list[Array], m: int) -> list[Array]:
    """The m planes of `spread_pattern`. Selections, no table: a TPU takes 1 GiB for its gather."""
    left, dense = jnp.full(numbers.shape, len(values), jnp.int32), []
    for place in reversed(range(m)):
        least = [float(2**30)] + [float(math.comb(place, i + 1)) for i in range(len(values))]
        least = selected(left, least).astype(jnp.int32)
        here = numbers >= least
        numbers = numbers - jnp.where(here, least, 0)
        left = left - here.astype(jnp.int32)
        value = values[0]
        for i, other in enumerate(values[1:], 1):
            value = jnp.where(left == i, other, value)
        dense.append(jnp.where(here, value, 0.0))
    return dense[::-1]
