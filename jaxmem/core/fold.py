"""Fold: a weight of any shape as a matrix (*stack, n, k): k holds the summed axes, n the others.

Codecs that encode rows, such as `Int`, encode that matrix. `MatrixLeaf` then gives their leaves
transpose, reshape, row look-up, stacks and any `dot_general`.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


@dataclasses.dataclass(frozen=True)
class Fold:
    """How the trailing axes of a weight lie in its matrix (n, k). It does not name stack axes.

    Example:
        >>> import jax.numpy as jnp
        >>> q = jnp.zeros((12, 64, 8, 16))  # layers, d, heads, head dim
        >>> matrix, fold = Fold.from_weight(q, (-3,))
        >>> matrix.shape, fold
        ((12, 128, 64), Fold(kept=(8, 16), summed=(64,), order=(-1, -3, -2)))
        >>> fold.unfold(matrix).shape
        (12, 64, 8, 16)
    """

    kept: tuple[int, ...]  # sizes of the axes that make up n
    summed: tuple[int, ...]  # sizes of the axes that make up k: a product sums over them
    order: tuple[int, ...]  # for each trailing axis of the weight, its axis in (*kept, *summed)

    @classmethod
    def from_weight(cls, w: Any, axes: tuple[int, ...]) -> tuple[Array, "Fold"]:
        """The matrix (*stack, n, k) of a weight whose products sum over `axes`, and its fold.

        The axes before the first summed one are the stack. But in a weight that ends in its summed
        axes, such as an embedding, the axis before these is n.

        Raises:
            ValueError: `axes` are not axes of `w`.
        """
        ndim = w.ndim
        axes = tuple(sorted(a - ndim if a >= 0 else a for a in axes))
        if ndim < 2 and axes != (-1,):
            raise ValueError(f"a vector of shape {w.shape} takes only Keep or Cast, not this codec")
        if not axes or axes[0] < -ndim or axes[-1] >= 0 or len(set(axes)) < len(axes):
            raise ValueError(f"axes {axes} are not distinct axes of a weight of shape {w.shape}")
        # The matrix's axes, as axes of the weight.
        kept = tuple(a for a in range(axes[0], 0) if a not in axes)
        if not kept and ndim > -axes[0]:
            kept = (axes[0] - 1,)
        layout = (*kept, *axes)
        rank = len(layout)
        # Move them to the end, and flatten each side.
        moved = w.transpose((*range(ndim - rank), *(a + ndim for a in layout)))
        order = tuple(layout.index(a) - rank for a in range(-rank, 0))
        sizes = lambda axes: tuple(w.shape[a] for a in axes)
        fold = cls(sizes(kept), sizes(axes), order)
        return moved.reshape(*w.shape[: ndim - rank], fold.n, fold.k), fold

    @classmethod
    def of(cls, w: Any, axes: tuple[int, ...]) -> "Fold":
        """The fold of a weight whose products sum over `axes`; no array is made."""
        folds = []
        shape = jax.ShapeDtypeStruct(w.shape, w.dtype)
        jax.eval_shape(lambda w: folds.append(cls.from_weight(w, axes)[1]), shape)
        return folds[0]

    n = property(lambda self: math.prod(self.kept))
    k = property(lambda self: math.prod(self.summed))

    def shape(self, stack: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the weight whose matrix has the leading axes `stack`."""
        unflattened = (*stack, *self.kept, *self.summed)
        return tuple(unflattened[a] for a in self.full_order(len(unflattened)))

    def full_order(self, ndim: int) -> tuple[int, ...]:
        """`order` for all `ndim` axes of a weight: stack axes stay where they are."""
        return (*range(-ndim, -len(self.order)), *self.order)

    def unfold(self, matrix: Array) -> Array:
        """The weight of a matrix (*stack, n, k)."""
        unflattened = matrix.reshape((*matrix.shape[:-2], *self.kept, *self.summed))
        ndim = unflattened.ndim
        return unflattened.transpose([a + ndim for a in self.full_order(ndim)])

    def shard(self, side: str, parts: int) -> "Fold":
        """The fold of one shard, if the matrix is divided into `parts` equal shards.

        They are runs of rows where `side` is "kept", runs of columns where it is "summed".
        NotImplemented where `parts` does not divide the first axis of the side that is longer
        than 1.

        Example:
            >>> Fold((9, 64), (576,), (-1, -3, -2)).shard("kept", 3)
            Fold(kept=(3, 64), summed=(576,), order=(-1, -3, -2))
        """
        sizes = getattr(self, side)
        first = next((i for i, size in enumerate(sizes) if size > 1), None)
        if first is None or sizes[first] % parts:
            return NotImplemented
        sizes = (*sizes[:first], sizes[first] // parts, *sizes[first + 1 :])
        return dataclasses.replace(self, **{side: sizes})

    def side_of_axis(self, axis: int) -> str | None:
        """The side, "kept" or "summed", that is divided by dividing the weight's `axis`.

        `axis` is negative. None for a stack axis, and for an axis that another one precedes on its
        side: a shard of the weight is then no run of rows or columns.
        """
        order = self.full_order(max(-axis, len(self.order)))
        sizes = (*self.kept, *self.summed)
        place = order[axis] + len(sizes)  # in `sizes`
        if place < 0:
            return None
        side, first = ("kept", 0) if place < len(self.kept) else ("summed", len(self.kept))
        return side if all(size == 1 for size in sizes[first:place]) else None

    def permuted(self, axes: tuple[int, ...]) -> "Fold":
        """The fold of the weight with its axes transposed to `axes`."""
        order = self.full_order(len(axes))
        order = tuple(order[a] for a in axes)
        rank = len(self.kept) + len(self.summed)
        while len(order) > rank and order[0] == -len(order):  # a stack axis that stays first
            order = order[1:]
        return dataclasses.replace(self, order=order)

    def regrouped(self, old: tuple[int, ...], new: tuple[int, ...]):
        """The fold of the weight reshaped from shape `old` to `new`.

        NotImplemented where an axis of `new` would join axes of two sides, or axes that do not
        follow each other in the matrix.
        """
        if 0 in old:
            return NotImplemented
        order = self.full_order(len(old))
        first_summed = -len(self.summed)
        stack_end = first_summed - len(self.kept)
        # Match runs of old axes with runs of new ones, and note where in the matrix each new axis
        # lies: (first matrix axis of its run, place in the run) -> size, in the order of `new`.
        new_axes = {}
        for i, j in _matching_runs(old, new):
            axes = order[i]
            consecutive = axes and axes == tuple(range(axes[0], axes[0] + len(axes)))
            two_sides = axes and axes[0] < first_summed <= axes[-1]
            changes_stack = axes and old[i] != new[j] and axes[0] < stack_end
            if not consecutive or two_sides or changes_stack:
                return NotImplemented
            new_axes |= {(axes[0], place): size for place, size in enumerate(new[j])}
        # The stack's axes must come first, in order.
        stack = [key for key in new_axes if key[0] < stack_end]
        if list(new_axes)[: len(stack)] != sorted(stack):
            return NotImplemented
        # The others in the order of the matrix give the sides; their order in `new` is `order`.
        inner = sorted(key for key in new_axes if key[0] >= stack_end)
        return Fold(
            tuple(new_axes[key] for key in inner if key[0] < first_summed),
            tuple(new_axes[key] for key in inner if key[0] >= first_summed),
            tuple(inner.index(key) - len(inner) for key in list(new_axes)[len(stack) :]),
        )


def matrix_shape(w: Any, axes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape (*stack, n, k) of the matrix of `w`, an array or its shape and dtype.

    Example:
        >>> matrix_shape(jax.ShapeDtypeStruct((12, 64, 8, 16), jnp.float32), (-3,))
        (12, 128, 64)
    """
    return _matrix_shape(tuple(w.shape), tuple(axes))


@functools.lru_cache(maxsize=2**12)  # a trace takes long for a tree of thousands of leaves
def _matrix_shape(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    w = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.eval_shape(lambda w: Fold.from_weight(w, axes)[0], w).shape


def _matching_runs(old: tuple[int, ...], new: tuple[int, ...]) -> Iterator[tuple[slice, slice]]:
    """The shortest runs of axes of the shapes `old` and `new` that hold equally many elements."""
    i = j = 0
    while i < len(old) and j < len(new):
        i_end, j_end, old_size, new_size = i + 1, j + 1, old[i], new[j]
        while old_size != new_size:
            if old_size < new_size:
                i_end, old_size = i_end + 1, old_size * old[i_end]
            else:
                j_end, new_size = j_end + 1, new_size * new[j_end]
        yield slice(i, i_end), slice(j, j_end)
        i, j = i_end, j_end
    if i < len(old) or j < len(new):
        yield slice(i, None), slice(j, None)  # axes of length 1
