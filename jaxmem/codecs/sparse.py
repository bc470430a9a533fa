"""Sparse: a mask with equal counts in every row, and the weights it keeps: what sparse forms share.

Which weights stay is a question of scores; how they are held is a codec's. So a codec has a `mask`
for given scores, and a leaf for a given mask (`hold`): solvers call the two with numbers of their
own. Without a solver the score is the magnitude (Han et al., 2015).
"""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ..core.fold import Fold
from ..core.leaf import Encoded, divided_shape, is_encoded
from ..core.matrix_leaf import MatrixLeaf
from ..kernels.tiled_matmul import UNROLLED_TILES, decoded_product

Count = Callable[[int, int], "Array | int"]
FEW = 16  # entries that are compared with each other rather than counted or sorted


def kept_of(size: int, kept: int) -> int:
    return kept


class Sparse(abc.ABC):
    """A codec that keeps some weights of a matrix (*stack, n, k) as they are, and no others."""

    @abc.abstractmethod
    def mask(self, scores: Array, count: Count = kept_of) -> Array:
        """Where the weights with the highest scores (*stack, n, k) stay, of equals the first.

        `count(size, kept)` of every `size` weights that compete with each other stay; `kept` is
        what the codec holds.
        """

    @abc.abstractmethod
    def hold(self, matrix: Array, mask: Array, fold: Fold, dtype: Any) -> "SparseArray":
        """The leaf with the weights that a mask like those of `mask` keeps."""

    def encode(self, w: Any, axes: tuple[int, ...] = (-2,), stats: Any = None) -> "SparseArray":
        if is_encoded(w):
            return w.map(self.encode)
        return _encode(self, w, tuple(axes))


@functools.partial(jax.jit, static_argnums=(0, 2))
def _encode(codec, w, axes):
    """Maps over the stack: what it takes beside the weight is one layer, and stays in a cache."""
    matrix, fold = Fold.from_weight(w, axes)

    def layer(matrix):
        mask = codec.mask(jnp.abs(matrix.astype(jnp.float32)))
        return codec.hold(matrix, mask, fold, w.dtype)

    for _ in range(matrix.ndim - 2):
        layer = functools.partial(lax.map, layer)
    return layer(matrix)


@dataclasses.dataclass(frozen=True)
class SparseArray(MatrixLeaf):
    """Values that stay, as an array or encoded, and where they stand."""

    values: Any  # (*stack, n, kept), or as a subclass says
    fold: Fold = dataclasses.field(metadata=dict(static=True))
    dtype: Any = dataclasses.field(metadata=dict(static=True))

    batch_shape = property(lambda self: self.values.shape[:-2])

    def map(self, fn):
        return dataclasses.replace(self, values=fn(self.values, (-1,)))

    def cut_rows(self, fold: Fold, parts: int, **places: Any) -> Any:
        """The shapes of one of `parts` runs of rows, given those of the leaf's other arrays."""
        values = divided_shape(self.values, -2, parts)
        if values is NotImplemented:
            return values
        return dataclasses.replace(self, values=values, fold=fold, **places)

    def matmul(self, x, precision=None):
        return lax.platform_dependent(
            x,
            self,
            cpu=functools.partial(decoded_product, precision=precision),
            default=functools.partial(
                decoded_product, precision=precision, unrolled=UNROLLED_TILES
            ),
        )


def highest(scores: Array, count: Array | int) -> Array:
    """Where the `count` highest scores of the last axis are; of equals the first, of all NaN last.

    The threshold is found bit by bit, by counting what lies above it: 32 passes, which on a CPU
    cost far less than a sort.

    Example:
        >>> import jax.numpy as jnp
        >>> highest(jnp.array([3.0, 1.0, 3.0, 5.0]), 2).tolist()
        [True, False, False, True]
    """
    size = scores.shape[-1]
    scores = scores.astype(jnp.float32)
    bits = lax.bitcast_convert_type(jnp.where(scores == 0, 0.0, scores), jnp.uint32)  # -0 is 0
    sign = jnp.uint32(1 << 31)
    keys = jnp.where(bits < sign, bits | sign, ~bits)  # in the order of the scores
    keys = jnp.where(jnp.isnan(scores), jnp.uint32(0), keys)
    if size <= FEW:
        mine, other = keys[..., :, None], keys[..., None, :]
        earlier = np.tri(size, k=-1, dtype=bool).reshape((1,) * (scores.ndim - 1) + (size, size))
        return ((other > mine) | (other == mine) & earlier).sum(-1) < count

    def bit(i, least):
        trial = least | sign >> i.astype(jnp.uint32)
        enough = (keys >= trial).sum(-1, keepdims=True) >= count
        return jnp.where(enough, trial, least)

    least = lax.fori_loop(0, 32, bit, jnp.zeros((*scores.shape[:-1], 1), jnp.uint32))
    above, equal = keys > least, keys == least
    left = count - above.sum(-1, keepdims=True)
    return above | equal & (jnp.cumsum(equal, -1) <= left)


def compressed(matrix: Array, mask: Array, count: int) -> tuple[Array, Array]:
    """The `count` entries of the last axis that a mask keeps, in order, and their places."""
    places = lax.platform_dependent(
        mask,
        cpu=functools.partial(_put_places, count=count),
        default=lambda mask: jnp.argsort(~mask, axis=-1, stable=True)[..., :count],
    )
    return jnp.take_along_axis(matrix, places, -1), places


def _put_places(mask, count):
    """Puts each place where it belongs: one pass, in a fraction of a sort's time on a CPU."""
    size = mask.shape[-1]
    own = jnp.arange(size, dtype=jnp.int32)
    if size <= FEW:
        order = jnp.cumsum(mask, -1, dtype=jnp.int32)
        wanted = jnp.arange(1, count + 1).reshape((1,) * (mask.ndim - 1) + (count, 1))
        here = mask[..., None, :] & (order[..., None, :] == wanted)
        return jnp.where(here, jnp.broadcast_to(own, here.shape), 0).sum(-1, dtype=jnp.int32)
    rows = mask.reshape(-1, size)
    order = jnp.where(rows, jnp.cumsum(rows, -1, dtype=jnp.int32) - 1, count)
    row = jnp.broadcast_to(jnp.arange(len(rows))[:, None], order.shape)
    places = jnp.zeros((len(rows), count), jnp.int32)
    own = jnp.broadcast_to(own, order.shape)
    return places.at[row, order].set(own, mode="drop").reshape(*mask.shape[:-1], count)


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
    if isinstance(values, MatrixLeaf):
        return values.rows()
    return (values.decode() if isinstance(values, Encoded) else values).astype(jnp.float32)


def narrow_values(values: Any, start: Array, size: int) -> Any:
    """Rows [start, start + size) of unstacked values."""
    if isinstance(values, MatrixLeaf):
        return values.slice_rows(start, size)
    values = values.decode() if isinstance(values, Encoded) else values
    return lax.dynamic_slice_in_dim(values, start, size, 0)


def pick_values(values: Any, at: Array) -> Array:
    """Rows `at` (m,) of unstacked values, in f32."""
    if isinstance(values, MatrixLeaf):
        return values.take_rows(at)
    return (values.decode() if isinstance(values, Encoded) else values)[at].astype(jnp.float32)
