"""Fold: a weight of any shape as a matrix (*stack, n, k): k holds the summed axes, n the others.

Codecs that work on rows (`Int` and its kin) encode that matrix; `Folded` gives them every
structural law in return: transpose, reshape, row look-up, stacks, any `dot_general`.
"""

import abc
import dataclasses
import math
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax import Array

from ..kernels.tiled_matmul import decoded_product
from .leaf import Encoded, apart


@dataclasses.dataclass(frozen=True)
class Fold:
    """How a weight's trailing axes lie in the matrix (n, k); leading stack axes are not named.

    Example:
        >>> import jax.numpy as jnp
        >>> q = jnp.zeros((12, 64, 8, 16))  # layers, d, heads, head dim
        >>> matrix, how = Fold.of(q, (-3,))
        >>> matrix.shape, how
        ((12, 128, 64), Fold(kept=(8, 16), summed=(64,), order=(-1, -3, -2)))
        >>> how.unfold(matrix).shape
        (12, 64, 8, 16)
    """

    kept: tuple[int, ...]
    summed: tuple[int, ...]
    order: tuple[int, ...]  # for each trailing axis of the weight, its axis in (*kept, *summed)

    @classmethod
    def of(cls, w: Any, axes: tuple[int, ...]) -> tuple[Array, "Fold"]:
        """The matrix (*stack, n, k) of `w` summed over `axes`, and the way back.

        Axes before the first summed one are the stack, except that a weight which ends in its
        summed axes (an embedding) keeps the one before.

        Raises:
            ValueError: `axes` are not axes of `w`.
        """
        ndim = w.ndim
        axes = tuple(sorted(a - ndim if a >= 0 else a for a in axes))
        if ndim < 2 and axes != (-1,):
            raise ValueError(f"a vector of shape {w.shape} takes only Keep or Cast, not this codec")
        if not axes or axes[0] < -ndim or axes[-1] >= 0 or len(set(axes)) < len(axes):
            raise ValueError(f"axes {axes} are not distinct axes of a weight of shape {w.shape}")
        kept = tuple(a for a in range(axes[0], 0) if a not in axes)
        if not kept and ndim > -axes[0]:
            kept = (axes[0] - 1,)
        layout = (*kept, *axes)
        r = len(layout)
        moved = jnp.transpose(w, (*range(ndim - r), *(a + ndim for a in layout)))
        order = tuple(layout.index(a) - r for a in range(-r, 0))
        size = lambda part: tuple(w.shape[a] for a in part)
        fold = cls(size(kept), size(axes), order)
        return moved.reshape(*w.shape[: ndim - r], fold.n, fold.k), fold

    n = property(lambda self: math.prod(self.kept))
    k = property(lambda self: math.prod(self.summed))

    def shape(self, stack: tuple[int, ...]) -> tuple[int, ...]:
        """The weight's shape, given the matrix's leading axes."""
        inner = (*stack, *self.kept, *self.summed)
        return tuple(inner[a] for a in self.full_order(len(inner)))

    def full_order(self, ndim: int) -> tuple[int, ...]:
        return (*range(-ndim, -len(self.order)), *self.order)

    def unfold(self, matrix: Array) -> Array:
        """The weight of a matrix (*stack, n, k)."""
        inner = matrix.reshape((*matrix.shape[:-2], *self.kept, *self.summed))
        return inner.transpose([a + inner.ndim for a in self.full_order(inner.ndim)])

    def cut(self, side: str, parts: int) -> "Fold":
        """The fold of one of `parts` runs of rows ("kept") or columns ("summed").

        NotImplemented where `parts` does not divide the side's first axis.

        Example:
            >>> Fold((9, 64), (576,), (-1, -3, -2)).cut("kept", 3)
            Fold(kept=(3, 64), summed=(576,), order=(-1, -3, -2))
        """
        sizes = getattr(self, side)
        at = next((i for i, size in enumerate(sizes) if size > 1), None)
        if at is None or sizes[at] % parts:
            return NotImplemented
        return dataclasses.replace(
            self, **{side: (*sizes[:at], sizes[at] // parts, *sizes[at + 1 :])}
        )

    def side(self, axis: int) -> str | None:
        """The side ("kept", "summed") whose runs are runs of the weight's `axis` (negative)."""
        order = self.full_order(max(-axis, len(self.order)))
        sides = (*self.kept, *self.summed)
        at = order[axis] + len(sides)  # in kept, then summed
        if at < 0:
            return None
        side, first = ("kept", 0) if at < len(self.kept) else ("summed", len(self.kept))
        return side if all(size == 1 for size in sides[first:at]) else None

    def permuted(self, axes: tuple[int, ...]) -> "Fold":
        order = self.full_order(len(axes))
        order = tuple(order[a] for a in axes)
        inner = len(self.kept) + len(self.summed)
        while len(order) > inner and order[0] == -len(order):
            order = order[1:]
        return dataclasses.replace(self, order=order)

    def regrouped(self, old: tuple[int, ...], new: tuple[int, ...]):
        """The fold of the weight reshaped from `old` to `new`; NotImplemented across the sides."""
        if 0 in old:
            return NotImplemented
        order = self.full_order(len(old))
        first_summed = -len(self.summed)
        stack_end = first_summed - len(self.kept)
        pieces = {}  # (axis of the matrix, position in it) -> length, in the new weight's order
        for i, j in _segments(old, new):
            axes = order[i]
            run = axes and axes == tuple(range(axes[0], axes[0] + len(axes)))
            moved = old[i] != new[j]
            if not run or axes[0] < first_summed <= axes[-1] or (moved and axes[0] < stack_end):
                return NotImplemented
            pieces |= {(axes[0], at): length for at, length in enumerate(new[j])}
        lead = [p for p in pieces if p[0] < stack_end]
        if list(pieces)[: len(lead)] != sorted(lead):
            return NotImplemented
        inner = sorted(p for p in pieces if p[0] >= stack_end)
        return Fold(
            tuple(pieces[p] for p in inner if p[0] < first_summed),
            tuple(pieces[p] for p in inner if p[0] >= first_summed),
            tuple(inner.index(p) - len(inner) for p in list(pieces)[len(lead) :]),
        )


class Folded(Encoded):
    """An encoded weight that holds its matrix (*stack, n, k) row by row.

    A subclass has a static field `fold`, and says `rows`, `narrow`, `pick` and `lead`, `piece`
    where it can be sharded, and `matmul` where it has a faster way. The first axes of every array
    inside are the stack.
    """

    fold: Fold
    dtype: Any
    splits_sums = True  # whether a product is the sum of its columns' products

    @abc.abstractmethod
    def rows(self) -> Array:
        """The matrix (*stack, n, k) in f32."""

    @abc.abstractmethod
    def narrow(self, start: Array, size: int) -> Self:
        """Rows [start, start + size) of an unstacked leaf; `start` is a multiple of 8."""

    @abc.abstractmethod
    def pick(self, index: Array) -> Array:
        """Rows (*index.shape, k) in f32 of an unstacked leaf."""

    def strands(self) -> list[Array]:
        """The rows j, P + j, 2 P + j, ... of the matrix as entry j of P, where a byte holds P rows.

        What is packed along n is decoded so without interleaving, at which a CPU is slow.
        """
        return [self.rows()]

    def ready(self, x: Array) -> tuple[Any, Array | None]:
        """Rows of an unstacked leaf for a CPU to decode tile after tile, and what they leave out.

        x (m, k) times the leaf's rows is x times those, and the array (m, n) f32 added, if any.
        """
        return self, None

    def matmul(self, x: Array, precision=None) -> Array:
        """x (m, k) times the rows of an unstacked leaf: (m, n) in f32."""
        return decoded_product(x, self, precision)

    def integers(self) -> "Folded | None":
        """The leaf of `Int` that this one is, for products of integers; None where it is none."""
        return None

    def piece(self, fold: Fold, side: str, parts: int) -> Self:
        """The shapes of one of `parts` runs of rows ("kept") or columns ("summed").

        `fold` is the piece's own. NotImplemented where the runs split a group or a byte.
        """
        return NotImplemented

    def product(self, x: Array, precision=None) -> Array:
        """x (..., k) times the rows of an unstacked leaf: (..., n) in f32."""
        flat = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
        return self.matmul(flat, precision).reshape(*x.shape[:-1], self.fold.n)

    def mapped_over(self, axis: int) -> Any:
        """Axes of a mesh that the matrix's stack axis (negative, among `lead`) lies over."""
        return None

    @property
    @abc.abstractmethod
    def lead(self) -> tuple[int, ...]:
        """The matrix's stack axes."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.fold.shape(self.lead)

    @property
    def stack(self) -> tuple[int, ...]:
        return self.shape[: self.ndim - len(self.fold.order)]

    def part(self, axis, parts):
        axis -= self.ndim if axis >= 0 else 0
        if axis + self.ndim < len(self.stack):
            return super().part(axis, parts)
        side = self.fold.side(axis)
        fold = NotImplemented if side is None else self.fold.cut(side, parts)
        return fold if fold is NotImplemented else self.piece(fold, side, parts)

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
        if self.lead or len(fold.kept) != 1 or fold.order != whole:
            return NotImplemented
        return self.pick(rows).reshape(*rows.shape, *fold.summed).astype(self.dtype)

    def dot(self, x, dims, preferred_element_type=None, precision=None):
        (xc, wc), (xb, wb) = dims
        place = [a + self.ndim for a in self.fold.full_order(self.ndim)]  # weight -> matrix axis
        n_stack = len(self.lead)
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
        own, back = apart(self)
        run = lambda x, own: back(own).product(x, precision)
        for i in reversed(range(n_stack)):
            over = self.mapped_over(i - n_stack)
            run = jax.vmap(run, (0 if i in batch else None, 0), spmd_axis_name=over)
        y = run(x, own).reshape(*self.lead, *sizes, *self.fold.kept)
        after = lambda i: i if i < n_stack else i + len(free)  # x's free axes follow the stack
        rest = [after(place[w]) for w in range(self.ndim) if w not in (*wc, *wb)]
        middle = range(n_stack, n_stack + len(free))
        y = y.transpose([*(place[w] for w in wb), *middle, *rest])
        return y.astype(preferred_element_type or jnp.promote_types(x.dtype, self.dtype))


class Wrapped(Folded):
    """A leaf that holds another, `inner`, and is as it is but for what a subclass says."""

    inner: Folded

    fold = property(lambda self: self.inner.fold)
    dtype = property(lambda self: self.inner.dtype)
    lead = property(lambda self: self.inner.lead)
    splits_sums = property(lambda self: self.inner.splits_sums)
    rounds_inputs = property(lambda self: self.inner.rounds_inputs)

    def opened(self) -> Folded:
        """The leaf inside, ready for use."""
        return self.inner

    def rows(self):
        return self.opened().rows()

    def narrow(self, start, size):
        return self.opened().narrow(start, size)

    def pick(self, index):
        return self.opened().pick(index)

    def matmul(self, x, precision=None):
        return self.opened().matmul(x, precision)

    def piece(self, fold, side, parts):
        inner = self.inner.piece(fold, side, parts)
        return inner if inner is NotImplemented else dataclasses.replace(self, inner=inner)

    def astype(self, dtype):
        return dataclasses.replace(self, inner=self.inner.astype(dtype))

    def transpose(self, axes):
        return dataclasses.replace(self, inner=self.inner.transpose(axes))

    def reshape(self, shape):
        inner = self.inner.reshape(shape)
        return inner if inner is NotImplemented else dataclasses.replace(self, inner=inner)


def _segments(old, new):
    """Slices of `old` and `new` in step: the shortest runs of axes of equal size."""
    i = j = 0
    while i < len(old) and j < len(new):
        a, b, p, q = i + 1, j + 1, old[i], new[j]
        while p != q:
            if p < q:
                a, p = a + 1, p * old[a]
            else:
                b, q = b + 1, q * new[b]
        yield slice(i, a), slice(j, b)
        i, j = a, b
    if i < len(old) or j < len(new):
        yield slice(i, None), slice(j, None)  # axes of length 1
