"""NM: n of every m neighbours are kept; their places p₀ < p₁ < … are one number, Σ C(pᵢ, i + 1)."""

import dataclasses
import functools
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..core.arguments import check_fields
from ..core.codec import PaddedEncoder
from ..core.leaf import divided_shape
from ..core.matrix_leaf import MatrixLeaf
from ..cpu_kernels.integer_rows import kept_rows_product
from ..kernels.decoded_tiles import UNROLLED_TILES, decoded_product
from ..kernels.dispatch import by_platform, differentiated_by, on_one_device, product_like
from ..kernels.pallas_nm_matmul import nm_product, supports
from .host_packing import cut_packed
from .packing import WIDTHS, pack, shifts, slice_packed, unpack, unpack_rows
from .scaled import select_level
from .sparse import (
    Count,
    Sparse,
    SparseArray,
    codec_count,
    compressed,
    cut_values,
    decoded_values,
    highest,
    slice_values,
    take_values,
)


@dataclasses.dataclass(frozen=True)
class NM(Sparse):
    """Keeps the `n` largest of every `m` weights along the summed axes: 2:4, 1:4, 4:8.

    The places of the kept weights are stored as the number of their pattern among C(m, n): 3 bits
    for 4 weights at 2:4 (two indices of two bits would take 4), 2 bits for 4 weights at 1:4, 7 bits
    for 8 weights at 4:8. So 2:4 takes half of the weights' bytes and .75 bits a weight. The kept
    weights are exact, or encoded by the next codec of a `Chain`. It saves storage: a product
    decodes some rows at a time. Mishra et al., 2021 (2:4).

    Raises:
        ValueError: not 0 < n < m, more than 256 patterns, or rows that m does not divide.

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
        check_fields(self)
        if not 0 < self.n < self.m:
            raise ValueError(f"NM keeps n of m weights, 0 < n < m, got {self.n}:{self.m}")
        if math.comb(self.m, self.n) > 256:
            patterns = math.comb(self.m, self.n)
            raise ValueError(f"{self.n}:{self.m} has {patterns} patterns, expected at most 256")

    @property
    def bits(self) -> int:
        """Bits of a pattern's number."""
        return (math.comb(self.m, self.n) - 1).bit_length()

    def mask(self, scores, count: Count = codec_count):
        return highest(self._groups(scores), count(self.m, self.n)).reshape(scores.shape)

    def encode_masked(self, matrix, mask, fold, dtype):
        values, _ = compressed(self._groups(matrix), self._groups(mask), self.n)
        values = lax.collapse(values, values.ndim - 2)
        codes = pack(pattern(self._groups(mask), self.n).astype(jnp.uint8), self.bits, axis=-2)
        return NMArray(values.astype(dtype), fold, jnp.dtype(dtype), codes, self.n, self.m)

    def padded_encoder(self):
        def cut(leaf, fold):
            groups = fold.k // self.m
            codes = cut_packed(leaf.codes, self.bits, fold.n, axis=-2)
            codes = tuple(a[..., :groups] for a in codes)
            values = cut_values(leaf.values, fold.n, groups * self.n)
            return dataclasses.replace(leaf, values=values, codes=codes, fold=fold)

        number = lambda fold: self._checked(fold.k)
        encode = lambda matrix, _: self.encode(matrix, (-1,))
        return PaddedEncoder(encode, cut, number, self.m)

    def _checked(self, k):
        """The length of rows, which m divides."""
        if k % self.m:
            raise ValueError(f"{self.n}:{self.m} takes rows of a multiple of {self.m}, got {k}")
        return k

    def _groups(self, matrix):
        k = self._checked(matrix.shape[-1])
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
        values = decoded_values(self.values)
        codes = unpack(self.codes, self.bits, values.shape[-2], axis=-2)
        return self._dense(codes, values)

    def _dense(self, codes, values):
        codes = codes.astype(jnp.int32) + (128 if self.bits == 8 else 0)
        values = values.reshape(*codes.shape, self.n)
        dense = expand_pattern(codes, [values[..., i] for i in range(self.n)], self.m)
        return lax.collapse(dense, codes.ndim - 1)

    def slice_rows(self, start, size):
        codes = slice_packed(self.codes, WIDTHS[self.bits], start, size)
        return dataclasses.replace(self, values=slice_values(self.values, start, size), codes=codes)

    def shard_matrix(self, fold, side, parts):
        if side == "kept":
            axis, divides = -2, fold.n * math.gcd(*WIDTHS[self.bits]) % 8 == 0
        else:
            axis, divides = -1, fold.k % self.m == 0
        values = divided_shape(self.values, axis, parts) if divides else NotImplemented
        if values is NotImplemented:
            return values
        codes = tuple(divided_shape(a, axis, parts) for a in self.codes)
        return dataclasses.replace(self, values=values, codes=codes, fold=fold)

    def matmul(self, x, precision=None):
        return _matmul(x, self, precision=precision)

    def has_kept_integers(self) -> bool:
        """Whether `kept_rows_product` multiplies this leaf: 2:4 of integers without zero points."""
        values = self.values.as_int_array() if isinstance(self.values, MatrixLeaf) else None
        if values is None or (self.n, self.m) != (2, 4) or values.bits not in (4, 8):
            return False
        if values.zero is not None:  # the zero points of dropped weights are not summed
            return False
        return values.scale.shape[-2] == 1 or values.group % 2 == 0

    def on_chip(self) -> dict[str, Any] | None:
        """The arguments of a kernel for an unstacked leaf, or None if no kernel reads the leaf."""
        values = self.values
        if not isinstance(values, Array):
            values = values.on_chip() if hasattr(values, "on_chip") else None
        if (
            values is None
            or self.bits == 8
            or not supports(self.n, self.codes[0].shape[-1], values)
        ):
            return None
        layout = dict(shifts=tuple(shifts(self.bits)), n=self.n, m=self.m, spread=pattern_planes)
        return dict(fields=self.codes, values=values, **layout)

    def take_rows(self, index):
        flat = index.reshape(-1)
        codes = unpack_rows(self.codes, self.bits, flat)
        rows = self._dense(codes, take_values(self.values, flat))
        return rows.reshape(*index.shape, self.fold.k)


@differentiated_by(decoded_product, product_like)
def _matmul(x, leaf, *, precision):
    """x (rows, k) . rows^T in f32, by what is fast on the platform."""
    decoded = functools.partial(decoded_product, precision=precision)
    elsewhere = functools.partial(decoded, unrolled=UNROLLED_TILES)
    if leaf.on_chip():
        kernel = lambda x, leaf: nm_product(x, **leaf.on_chip(), precision=precision)
        elsewhere = functools.partial(on_one_device, kernel, elsewhere, like=product_like(x, leaf))
    on_cpu = decoded
    if leaf.has_kept_integers():
        on_cpu = functools.partial(kept_rows_product, otherwise=decoded)
    return by_platform(x, leaf, cpu=on_cpu, default=elsewhere, like=product_like(x, leaf))


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
        # C(place, i + 1) if this place is the i-th of the kept ones.
        terms = [float(math.comb(place, i + 1)) for i in range(n)]
        is_kept = mask[..., place]
        number += jnp.where(is_kept, select_level(count, terms).astype(jnp.int32), 0)
        count += is_kept.astype(jnp.int32)
    return number


def expand_pattern(numbers: Array, values: list[Array], m: int) -> Array:
    """Groups (..., m): `values`, each (...), at the places of patterns `numbers`, zeros elsewhere.

    Example:
        >>> import jax.numpy as jnp
        >>> expand_pattern(jnp.array([2]), [jnp.array([5.0]), jnp.array([7.0])], 4).tolist()
        [[0.0, 5.0, 7.0, 0.0]]
    """
    return jnp.stack(pattern_planes(numbers, values, m), -1)


def pattern_planes(numbers: Array, values: list[Array], m: int) -> list[Array]:
    """`expand_pattern` as a list of the m places, each (...).

    By selections, since a gather from a table takes 1 GiB on a TPU.
    """
    left, dense = jnp.full(numbers.shape, len(values), jnp.int32), []
    for place in reversed(range(m)):
        # The last of `left` kept places is this one if the number reaches C(place, left).
        terms = [float(2**30)] + [float(math.comb(place, i + 1)) for i in range(len(values))]
        term = select_level(left, terms).astype(jnp.int32)
        is_kept = numbers >= term
        numbers = numbers - jnp.where(is_kept, term, 0)
        left = left - is_kept.astype(jnp.int32)  # kept places before this one
        value = values[0]
        for i, other in enumerate(values[1:], 1):
            value = jnp.where(left == i, other, value)
        dense.append(jnp.where(is_kept, value, 0.0))
    return dense[::-1]
