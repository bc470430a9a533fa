"""MatrixLeaf: an encoded weight that holds its matrix (*stack, n, k) row by row."""

import abc
import dataclasses
import math
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from jax import Array

from ..kernels.decoded_tiles import decoded_product
from .fold import Fold
from .leaf import Encoded, separate_shared


class MatrixLeaf(Encoded):
    """An encoded weight that holds its matrix (*stack, n, k) row by row.

    A subclass has a static field `fold` and defines `rows`, `slice_rows`, `take_rows` and
    `batch_shape`. It defines `shard_matrix` if it can be sharded, and `matmul` if it has a faster
    product. The first axes of every array inside are the stack.
    """

    fold: Fold
    dtype: Any
    splits_sums = True  # whether a product is the sum of the products of shards of columns
    reads_in_stack: ClassVar[bool] = False  # whether `layer_matmul` reads a layer in its stack

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
        """The matrix of an unstacked leaf as P arrays; array j has the rows j, P + j, 2 P + j, ...

        P is the number of rows that share a byte. So codes that are packed along n are decoded
        without interleaving, at which a CPU is slow.
        """
        return [self.rows()]

    def prepare_for_cpu(self, x: Array) -> tuple[Any, Array | None]:
        """(a leaf whose tiles a CPU decodes faster, an array (m, n) f32 to add to its product).

        x (m, k) times the rows of this unstacked leaf is x times the rows of that leaf, plus the
        array; None is nothing to add.
        """
        return self, None

    def matmul(self, x: Array, precision=None) -> Array:
        """x (m, k) times the rows of an unstacked leaf: (m, n) in f32."""
        return decoded_product(x, self, precision)

    def layer_matmul(self, x: Array, layer: Any, precision=None) -> Array:
        """x (m, k) times the rows of a `StackLayer` of this stack: (m, n) in f32."""
        return layer.unwrapped().matmul(x, precision)

    def in_stack(self) -> tuple["MatrixLeaf", Array | None]:
        """(the leaf that holds the arrays, which layer of it this leaf is; None if it is all)."""
        return self, None

    def as_int_array(self) -> "MatrixLeaf | None":
        """This leaf as the leaf of `Int`, for products of integers; None if it is no such leaf."""
        return None

    def shard_matrix(self, fold: Fold, side: str, parts: int) -> Self:
        """The leaf of shapes of one shard, if the matrix is divided into `parts` equal shards.

        They are runs of rows where `side` is "kept", runs of columns where it is "summed"; `fold`
        is the fold of a shard. NotImplemented where a shard would split a group or a byte.
        """
        return NotImplemented

    def cut(self, fold: Fold) -> Self:
        """The leaf of the first rows and columns, as many as `fold` has; the arrays are NumPy's.

        Only codecs whose `ignores_zeros` is true need it: it is what `encode` makes of those rows
        and columns alone.
        """
        raise NotImplementedError(f"{type(self).__name__} is not cut")

    def product(self, x: Array, precision=None) -> Array:
        """x (..., k) times the rows of an unstacked leaf: (..., n) in f32."""
        flat = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
        return self.matmul(flat, precision).reshape(*x.shape[:-1], self.fold.n)

    def stack_mesh_axes(self, axis: int) -> Any:
        """The mesh axes that a stack axis of the matrix is divided over.

        `axis` is negative and counts within `batch_shape`.
        """
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

    def moved_layers(self):
        fold = self.fold
        size = fold.n // fold.kept[0] if fold.kept and fold.kept[0] else 0  # rows of a layer
        rows_first = len(fold.order) == self.ndim > 2 and fold.order[0] == -self.ndim
        if self.batch_shape or len(fold.kept) < 2 or not rows_first or size % 8 or not size:
            return NotImplemented
        layer_fold = Fold(fold.kept[1:], fold.summed, fold.order[1:])
        layer = lambda i: self.slice_rows(i * size, size).with_fold(layer_fold)
        return jnp.arange(fold.kept[0], dtype=jnp.int32), layer

    def with_fold(self, fold: Fold) -> Self:
        """The same matrix as a weight of another shape."""
        return dataclasses.replace(self, fold=fold)

    def take(self, rows):
        fold = self.fold
        rows_first = tuple(range(-len(fold.summed) - 1, 0))  # the weight is the matrix itself
        if self.batch_shape or len(fold.kept) != 1 or fold.order != rows_first:
            return NotImplemented
        return self.take_rows(rows).reshape(*rows.shape, *fold.summed).astype(self.dtype)

    def dot(self, x, dims, preferred_element_type=None, precision=None):
        # 1. Which axes of the unflattened matrix (*stack, *kept, *summed) are summed or batched.
        (x_sum, w_sum), (x_batch, w_batch) = dims
        matrix_axis = [a + self.ndim for a in self.fold.full_order(self.ndim)]
        n_stack = len(self.batch_shape)
        sums = {matrix_axis[w]: x for w, x in zip(w_sum, x_sum)}  # to the axis of x
        batch = {matrix_axis[w]: x for w, x in zip(w_batch, x_batch)}
        if sorted(sums) != list(range(n_stack + len(self.fold.kept), self.ndim)):
            return NotImplemented  # it sums over a part of k, or over other axes
        if any(i >= n_stack for i in batch):
            return NotImplemented

        # 2. x as (*batch, *free, k).
        free = [a for a in range(x.ndim) if a not in (*x_sum, *x_batch)]
        free_sizes = [x.shape[a] for a in free]
        x = x.transpose(
            [*(batch[i] for i in sorted(batch)), *free, *(sums[i] for i in sorted(sums))]
        )
        x = x.reshape(*x.shape[: len(batch)], *free_sizes, self.fold.k)

        # 3. The product of each matrix of the stack: (*stack, *free, *kept).
        arrays, rebuild = separate_shared(self)
        run = lambda x, arrays: rebuild(arrays).product(x, precision)
        for i in reversed(range(n_stack)):
            mesh_axes = self.stack_mesh_axes(i - n_stack)
            run = jax.vmap(run, (0 if i in batch else None, 0), spmd_axis_name=mesh_axes)
        y = run(x, arrays).reshape(*self.batch_shape, *free_sizes, *self.fold.kept)

        # 4. Its axes in the order of `lax.dot_general`: batch, free of x, free of the weight.
        y_axis = lambda i: i if i < n_stack else i + len(free)
        w_free = [w for w in range(self.ndim) if w not in (*w_sum, *w_batch)]
        y = y.transpose(
            [
                *(matrix_axis[w] for w in w_batch),
                *range(n_stack, n_stack + len(free)),
                *(y_axis(matrix_axis[w]) for w in w_free),
            ]
        )
        return y.astype(preferred_element_type or jnp.promote_types(x.dtype, self.dtype))


class MatrixLeafWrapper(MatrixLeaf):
    """A leaf that holds another one, `inner`, and does the same except where a subclass differs."""

    inner: MatrixLeaf

    fold = property(lambda self: self.inner.fold)
    dtype = property(lambda self: self.inner.dtype)
    batch_shape = property(lambda self: self.inner.batch_shape)
    splits_sums = property(lambda self: self.inner.splits_sums)
    rounds_inputs = property(lambda self: self.inner.rounds_inputs)

    def unwrapped(self) -> MatrixLeaf:
        """The leaf inside, in the form that rows are decoded from."""
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

    def moved_layers(self):
        moved = self.inner.moved_layers()
        if moved is NotImplemented:
            return moved
        slices, layer = moved
        return slices, lambda part: dataclasses.replace(self, inner=layer(part))

    def with_fold(self, fold):
        return dataclasses.replace(self, inner=self.inner.with_fold(fold))

    def astype(self, dtype):
        return dataclasses.replace(self, inner=self.inner.astype(dtype))

    def transpose(self, axes):
        return dataclasses.replace(self, inner=self.inner.transpose(axes))

    def reshape(self, shape):
        inner = self.inner.reshape(shape)
        return inner if inner is NotImplemented else dataclasses.replace(self, inner=inner)
