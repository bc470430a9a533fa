"""MatrixLeaf: an encoded weight that holds its matrix (*stack, n, k) row by row."""

import abc
import dataclasses
import math
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax import Array

from ..kernels.tiled_matmul import decoded_product
from .fold import Fold
from .leaf import Encoded, separate_shared


class MatrixLeaf(Encoded):
    """An encoded weight that holds its matrix (*stack, n, k) row by row.

    A subclass has a static field `fold` and defines `rows`, `slice_rows`, `take_rows` and
    `batch_shape`; also `shard_matrix` where it can be sharded, and `matmul` where it has a faster
    way. The first axes of every array inside are the stack.
    """

    fold: Fold
    dtype: Any
    splits_sums = True  # whether a product is the sum of its columns' products

    @abc.abstractmethod
    def rows(self) -> Array:
        """The matrix (*stack, n, k) in f32."""

    @abc.abstractmethod
    def slice_rows(self, start: Array, size: int) -> Self:
        """Rows [start, start + size) of an unstacked leaf; `start` is a multiple of 8."""

    @abc.abstractmethod
    def take_rows(self, index: Array) -> Array:
        """Rows (*index.shape, k) in f32 of an unstacked leaf."""

    def interleaved_rows(self) -> list[Array]:
        """The rows j, P + j, 2 P + j, ... of the matrix as entry j of P, where a byte holds P rows.

        What is packed along n is decoded so without interleaving, at which a CPU is slow.
        """
        return [self.rows()]

    def prepare_for_cpu(self, x: Array) -> tuple[Any, Array | None]:
        """Rows of an unstacked leaf for a CPU to decode tile after tile, and what they leave out.

        x (m, k) times the leaf's rows is x times those, and the array (m, n) f32 added, if any.
        """
        return self, None

    def matmul(self, x: Array, precision=None) -> Array:
        """x (m, k) times the rows of an unstacked leaf: (m, n) in f32."""
        return decoded_product(x, self, precision)

    def as_int_array(self) -> "MatrixLeaf | None":
        """The leaf of `Int` that this one is, for products of integers; None where it is none."""
        return None

    def shard_matrix(self, fold: Fold, side: str, parts: int) -> Self:
        """The shapes of one of `parts` runs of rows ("kept") or columns ("summed").

        `fold` is the piece's own. NotImplemented where the runs split a group or a byte.
        """
        return NotImplemented

    def product(self, x: Array, precision=None) -> Array:
        """x (..., k) times the rows of an unstacked leaf: (..., n) in f32."""
        flat = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
        return self.matmul(flat, precision).reshape(*x.shape[:-1], self.fold.n)

    def stack_mesh_axes(self, axis: int) -> Any:
        """Axes of a mesh that the matrix's stack axis (negative, among `batch_shape`) lies over."""
        return None

    @property
    @abc.abstractmethod
    def batch_shape(self) -> tuple[int, ...]:
        """The matrix's stack axes."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.fold.shape(self.batch_shape)

    @property
    def stack(self) -> tuple[int, ...]:
        return self.shape[: self.ndim - len(self.fold.order)]

    def shard_shape(self, axis, parts):
        axis -= self.ndim if axis >= 0 else 0
        if axis + self.ndim < len(self.stack):
            return super().shard_shape(axis, parts)
        side = self.fold.side_of_axis(axis)
        fold = NotImplemented if side is None else self.fold.shard(side, parts)
        return fold if fold is NotImplemented else self.shard_matrix(fold, side, parts)

    def decode(self) -> Array:
        return self.fold.unfold(self.rows()).astype(self.dtype)

    def astype(self, dtype) -> Self:
        return dataclasses.replace(self, dtype=jnp.dtype(dtype))

    def transpose(self, axes):
        return dataclasses.replace(self, fold=self.fold.permuted(axes))

    def reshape(self, shape):
        fold = self.fold.regrouped(self.shape, shape)
        return fold if fold is NotImplemented else dataclasses.replace(self, fold=fold)

    def take(self, rows):
        fold = self.fold
        whole = tuple(range(-len(fold.summed) - 1, 0))
        if self.batch_shape or len(fold.kept) != 1 or fold.order != whole:
            return NotImplemented
        return self.take_rows(rows).reshape(*rows.shape, *fold.summed).astype(self.dtype)

    def dot(self, x, dims, preferred_element_type=None, precision=None):
        (xc, wc), (xb, wb) = dims
        place = [a + self.ndim for a in self.fold.full_order(self.ndim)]  # weight -> matrix axis
        n_stack = len(self.batch_shape)
        sums = {place[w]: x for w, x in zip(wc, xc)}
        batch = {place[w]: x for w, x in zip(wb, xb)}
        if sorted(sums) != list(range(n_stack + len(self.fold.kept), self.ndim)):
            return NotImplemented  # a part of the sum, or a sum over other axes
        if any(i >= n_stack for i in batch):
            return NotImplemented
        free = [a for a in range(x.ndim) if a not in (*xc, *xb)]
        sizes = [x.shape[a] for a in free]
        x = x.transpose(
            [*(batch[i] for i in sorted(batch)), *free, *(sums[i] for i in sorted(sums))]
        )
        x = x.reshape(*x.shape[: len(batch)], *sizes, self.fold.k)
        own, back = separate_shared(self)
        run = lambda x, own: back(own).product(x, precision)
        for i in reversed(range(n_stack)):
            over = self.stack_mesh_axes(i - n_stack)
            run = jax.vmap(run, (0 if i in batch else None, 0), spmd_axis_name=over)
        y = run(x, own).reshape(*self.batch_shape, *sizes, *self.fold.kept)
        after = lambda i: i if i < n_stack else i + len(free)  # x's free axes follow the stack
        rest = [after(place[w]) for w in range(self.ndim) if w not in (*wc, *wb)]
        middle = range(n_stack, n_stack + len(free))
        y = y.transpose([*(place[w] for w in wb), *middle, *rest])
        return y.astype(preferred_element_type or jnp.promote_types(x.dtype, self.dtype))


class MatrixLeafWrapper(MatrixLeaf):
    """A leaf that holds another, `inner`, and is as it is but for what a subclass says."""

    inner: MatrixLeaf

    fold = property(lambda self: self.inner.fold)
    dtype = property(lambda self: self.inner.dtype)
    batch_shape = property(lambda self: self.inner.batch_shape)
    splits_sums = property(lambda self: self.inner.splits_sums)
    rounds_inputs = property(lambda self: self.inner.rounds_inputs)

    def unwrapped(self) -> MatrixLeaf:
        """The leaf inside, ready for use."""
        return self.inner

    def rows(self):
        return self.unwrapped().rows()

    def slice_rows(self, start, size):
        return self.unwrapped().slice_rows(start, size)

    def take_rows(self, index):
        return self.unwrapped().take_rows(index)

    def matmul(self, x, precision=None):
        return self.unwrapped().matmul(x, precision)

    def shard_matrix(self, fold, side, parts):
        inner = self.inner.shard_matrix(fold, side, parts)
        return inner if inner is NotImplemented else dataclasses.replace(self, inner=inner)

    def astype(self, dtype):
        return dataclasses.replace(self, inner=self.inner.astype(dtype))

    def transpose(self, axes):
        return dataclasses.replace(self, inner=self.inner.transpose(axes))

    def reshape(self, shape):
        inner = self.inner.reshape(shape)
        return inner if inner is NotImplemented else dataclasses.replace(self, inner=inner)
