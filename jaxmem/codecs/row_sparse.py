"""RowSparse: codecs that keep the same number of weights in each row, and their leaves."""

import abc
import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import Array, lax

from ..core.codec import PaddedEncoder
from ..core.fold import Fold
from .sparse import (
    DensitySparse,
    SparseArray,
    cut_values,
    decoded_values,
    highest,
    slice_values,
    take_values,
)


class RowSparse(DensitySparse):
    """A `DensitySparse` whose leaf is a `RowSparseArray`."""

    def padded_encoder(self):
        """Keeps as many weights as of the rows without padding; zeros behind are never among them.

        Of equal scores the first stay, so a zero of the weight goes before the padding.
        """

        def encode(matrix, kept):
            mask = highest(jnp.abs(matrix.astype(jnp.float32)), kept)
            fold = Fold.of(matrix, (-1,))
            leaf = self.encode_masked(matrix, mask, fold, matrix.dtype)
            stored = leaf.values.shape[-1]
            is_stored = (jnp.arange(stored) < kept).reshape((1,) * (matrix.ndim - 1) + (stored,))
            return dataclasses.replace(leaf, values=jnp.where(is_stored, leaf.values, 0))

        return PaddedEncoder(encode, self._cut, lambda fold: self.kept(fold.k))

    def _cut(self, leaf, fold):
        """The leaf of the first rows and columns."""
        values = cut_values(leaf.values, fold.n, self.kept(fold.k))
        places = self.cut_places(getattr(leaf, leaf.places_field)[..., : fold.n, :], fold.k)
        changed = {"values": values, leaf.places_field: places}
        return dataclasses.replace(leaf, fold=fold, **changed)

    @abc.abstractmethod
    def cut_places(self, places: Any, k: int) -> Any:
        """The places of the kept weights among the first k columns."""


class RowSparseArray(SparseArray):
    """A leaf whose rows keep the same number of weights: values (*stack, n, kept), in order.

    A subclass has one more array, whose rows tell the places of the kept weights, and defines
    `dense`.
    """

    places_field: ClassVar[str]  # the name of that array, (*stack, n, ...)

    @abc.abstractmethod
    def dense(self, values: Array, places: Array) -> Array:
        """Rows (..., k) in f32 of values (..., kept) f32 at their `places` (..., any)."""

    def rows(self):
        return self.dense(decoded_values(self.values), self._places)

    def slice_rows(self, start, size):
        places = lax.dynamic_slice_in_dim(self._places, start, size, 0)
        values = slice_values(self.values, start, size)
        return dataclasses.replace(self, values=values, **{self.places_field: places})

    def take_rows(self, index):
        flat = index.reshape(-1)
        rows = self.dense(take_values(self.values, flat), self._places[flat])
        return rows.reshape(*index.shape, self.fold.k)

    def shard_matrix(self, fold, side, parts):
        return self.shard_rows(fold, side, parts, **{self.places_field: self._places})

    _places = property(lambda self: getattr(self, self.places_field))
