"""Fold: a weight of any shape as a matrix (*stack, n, k): k holds the summed axes, n the others.

Codecs that work on rows (`Int` and its kin) encode that matrix; `MatrixLeaf` gives them every
structural law in return: transpose, reshape, row look-up, stacks, any `dot_general`.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


@dataclasses.dataclass(frozen=True)
class Fold:
    """How a weight's trailing axes lie in the matrix (n, k); leading stack axes are not named.

    Example:
        >>> import jax.numpy as jnp
        >>> q = jnp.zeros((12, 64, 8, 16))  # layers, d, heads, head dim
        >>> matrix, how = Fold.from_weight(q, (-3,))
        >>> matrix.shape, how
        ((12, 128, 64), Fold(kept=(8, 16), summed=(64,), order=(-1, -3, -2)))
        >>> how.unfold(matrix).shape
        (12, 64, 8, 16)
    """

    kept: tuple[int, ...]
    summed: tuple[int, ...]
    order: tuple[int, ...]  # for each trailing axis of the weight, its axis in (*kept, *summed)

    @classmethod
    def from_weight(cls, w: Any, axes: tuple[int, ...]) -> tuple[Array, "Fold"]:
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

    def shard(self, side: str, parts: int) -> "Fold":
        """The fold of one of `parts` runs of rows ("kept") or columns ("summed").

        NotImplemented where `parts` does not divide the side's first axis.

        Example:
            >>> Fold((9, 64), (576,), (-1, -3, -2)).shard("kept", 3)
            Fold(kept=(3, 64), summed=(576,), order=(-1, -3, -2))
        """
        sizes = getattr(self, side)
        at = next((i for i, size in enumerate(sizes) if size > 1), None)
        if at is None or sizes[at] % parts:
            return NotImplemented
        return dataclasses.replace(
            self, **{side: (*sizes[:at], sizes[at] // parts, *sizes[at + 1 :])}
        )

    def side_of_axis(self, axis: int) -> str | None:
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


def matrix_shape(w: Any, axes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape (*stack, n, k) of the matrix of `w`, an array or its shape and dtype.

    Example:
        >>> matrix_shape(jax.ShapeDtypeStruct((12, 64, 8, 16), jnp.float32), (-3,))
        (12, 128, 64)
    """
    return jax.eval_shape(lambda w: Fold.from_weight(w, axes)[0], w).shape


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
