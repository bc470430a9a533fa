"""Sparse: a mask with equal counts in every row, and the weights it keeps: what sparse forms share.

Which weights stay is a question of scores; how they are held is a codec's. So a codec has a `mask`
for given scores, and a leaf for a given mask (`hold`): solvers call the two with numbers of their
own. Without a solver the score is the magnitude (Han et al., 2015).
"""

import abc
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..folding import UNROLLED, Fold, Folded, decoded_product
from ..leaf import Encoded, is_encoded, shrunk


class Sparse(abc.ABC):
    """A codec that keeps some weights of a matrix (*stack, n, k) as they are, and no others."""

    @abc.abstractmethod
    def ranks(self, scores: Array) -> tuple[Array, int, int]:
        """(place of each weight among those it competes with, how many these are and may stay).

        `scores` and places (int32) are (*stack, n, k); the highest score is at 0, of equals the
        first before the others.
        """

    def mask(self, scores: Array) -> Array:
        """Where the weights with the highest scores (*stack, n, k) stay."""
        places, _, kept = self.ranks(scores)
        return places < kept

    @abc.abstractmethod
    def hold(self, matrix: Array, mask: Array, fold: Fold, dtype: Any) -> "SparseArray":
        """The leaf with the weights that a mask like those of `mask` keeps."""

    def encode(self, w: Any, axes: tuple[int, ...] = (-2,), stats: Any = None) -> "SparseArray":
        if is_encoded(w):
            return w.map(self.encode)
        return _encode(self, w, tuple(axes))


@functools.partial(jax.jit, static_argnums=(0, 2))
def _encode(codec, w, axes):
    matrix, fold = Fold.of(w, axes)
    mask = codec.mask(jnp.abs(matrix.astype(jnp.float32)))
    return codec.hold(matrix, mask, fold, w.dtype)


@dataclasses.dataclass(frozen=True)
class SparseArray(Folded):
    """Values that stay, as an array or encoded, and where they stand."""

    values: Any  # (*stack, n, kept), or as a subclass says
    fold: Fold = dataclasses.field(metadata=dict(static=True))
    dtype: Any = dataclasses.field(metadata=dict(static=True))

    lead = property(lambda self: self.values.shape[:-2])

    def map(self, fn):
        return dataclasses.replace(self, values=fn(self.values, (-1,)))

    def cut_rows(self, fold: Fold, parts: int, **places: Any) -> Any:
        """The shapes of one of `parts` runs of rows, given those of the leaf's other arrays."""
        values = shrunk(self.values, -2, parts)
        if values is NotImplemented:
            return values
        return dataclasses.replace(self, values=values, fold=fold, **places)

    def matmul(self, x, precision=None):
        return lax.platform_dependent(
            x,
            self,
            cpu=functools.partial(decoded_product, precision=precision),
            default=functools.partial(decoded_product, precision=precision, unrolled=UNROLLED),
        )


def ranked(scores: Array) -> Array:
    """The place of each score of the last axis, the highest at 0; of equals, the first before.

    Example:
        >>> import jax.numpy as jnp
        >>> ranked(jnp.array([3.0, 1.0, 3.0, 5.0])).tolist()
        [1, 3, 2, 0]
    """
    order = jnp.argsort(-scores, axis=-1, stable=True)
    own = jnp.broadcast_to(jnp.arange(scores.shape[-1]), scores.shape)
    return jnp.put_along_axis(jnp.zeros_like(order), order, own, -1, inplace=False)


def compressed(matrix: Array, mask: Array, count: int) -> tuple[Array, Array]:
    """The `count` entries of the last axis that a mask keeps, in order, and their places."""
    places = jnp.argsort(~mask, axis=-1, stable=True)[..., :count]
    return jnp.take_along_axis(matrix, places, -1), places


def kept_count(density: float, size: int, what: str) -> int:
    """How many of `size` things a density keeps.

    Raises:
        ValueError: none, or all of them.
    """
    count = round(density * size)
    if size and not 0 < count < size:
        raise ValueError(f"density {density} keeps {count} of {size} {what}, expected some")
    return count


def checked_density(density: float, codec: str) -> None:
    if not 0 < density < 1:
        raise ValueError(f"{codec} takes a density above 0 and below 1, got {density}")


def index_dtype(size: int) -> Any:
    """The narrowest unsigned integers that count to `size` − 1."""
    return next(d for d in (jnp.uint8, jnp.uint16, jnp.uint32) if size - 1 <= jnp.iinfo(d).max)


def value_rows(values: Any) -> Array:
    """Values (*stack, n, kept) in f32."""
    if isinstance(values, Folded):
        return values.rows()
    return (values.decode() if isinstance(values, Encoded) else values).astype(jnp.float32)


def narrow_values(values: Any, start: Array, size: int) -> Any:
    """Rows [start, start + size) of unstacked values."""
    if isinstance(values, Folded):
        return values.narrow(start, size)
    values = values.decode() if isinstance(values, Encoded) else values
    return lax.dynamic_slice_in_dim(values, start, size, 0)


def pick_values(values: Any, at: Array) -> Array:
    """Rows `at` (m,) of unstacked values, in f32."""
    if isinstance(values, Folded):
        return values.pick(at)
    return (values.decode() if isinstance(values, Encoded) else values)[at].astype(jnp.float32)
