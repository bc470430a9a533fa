"""Sparse: a mask with equal counts in every row, and the weights it keeps; sparse codecs share it.

Scores decide which weights stay; the codec decides how they are stored. So a codec makes a `mask`
from given scores, and a leaf from a given mask (`encode_masked`): solvers call the two with their
own scores. Without a solver the score is the magnitude (Han et al., 2015).
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

from ..core.arguments import check_fields
from ..core.fold import Fold
from ..core.leaf import Encoded, divided_shape, is_encoded
from ..core.matrix_leaf import MatrixLeaf
from ..kernels.decoded_tiles import UNROLLED_TILES, decoded_product

Count = Callable[[int, int], "Array | int"]
PAIRWISE_SIZE = 16  # entries of an axis up to which each is compared with every other


def codec_count(size: int, kept: int) -> int:
    """Of `size` weights as many stay as the codec stores: the default of `Sparse.mask`."""
    return kept


class Sparse(abc.ABC):
    """A codec that stores some weights of a matrix (*stack, n, k) exactly, and drops the others."""

    @abc.abstractmethod
    def mask(self, scores: Array, count: Count = codec_count) -> Array:
        """A mask (*stack, n, k) of the weights with the highest scores, of equals the first.

        Of every `size` weights that compete with each other, `count(size, kept)` stay; `kept` is
        the number that the codec stores.
        """

    @abc.abstractmethod
    def encode_masked(self, matrix: Array, mask: Array, fold: Fold, dtype: Any) -> "SparseArray":
        """The leaf that stores the weights of `matrix` which a `mask` of this codec keeps."""

    def encode(self, w: Any, axes: tuple[int, ...] = (-2,), stats: Any = None) -> "SparseArray":
        if is_encoded(w):
            return w.map(self.encode)
        return _encode(self, w, tuple(axes))


@dataclasses.dataclass(frozen=True)
class DensitySparse(Sparse):
    """A sparse codec that keeps a share `density` of its weights, or of its units of weights.

    `mask` keeps the same number of weights in each row; a subclass with other units overrides it.

    Raises:
        ValueError: `density` is not between 0 and 1.
    """

    density: float
    unit = "weights of each row"  # the units that the density counts, for an error message

    def __post_init__(self):
        check_fields(self)
        if not 0 < self.density < 1:
            name = type(self).__name__
            raise ValueError(f"{name} takes a density above 0 and below 1, got {self.density}")

    def kept(self, size: int) -> int:
        """How many of `size` units stay.

        Raises:
            ValueError: none or all of the units would stay.
        """
        count = round(self.density * size)
        if size and not 0 < count < size:
            units = f"{count} of {size} {self.unit}"
            raise ValueError(f"density {self.density} keeps {units}, expected some")
        return count

    def mask(self, scores, count: Count = codec_count):
        k = scores.shape[-1]
        return highest(scores, count(k, self.kept(k)))


@functools.partial(jax.jit, static_argnums=(0, 2))
def _encode(codec, w, axes):
    """The leaf. Mapped over the stack: the temporaries are of one layer, and stay in a cache."""
    matrix, fold = Fold.from_weight(w, axes)

    def layer(matrix):
        mask = codec.mask(jnp.abs(matrix.astype(jnp.float32)))
        return codec.encode_masked(matrix, mask, fold, w.dtype)

    for _ in range(matrix.ndim - 2):
        layer = functools.partial(lax.map, layer)
    return layer(matrix)


@dataclasses.dataclass(frozen=True)
class SparseArray(MatrixLeaf):
    """The values that stay, as an array or encoded, and their places."""

    values: Any  # (*stack, n, kept), unless a subclass has another shape
    fold: Fold = dataclasses.field(metadata=dict(static=True))
    dtype: Any = dataclasses.field(metadata=dict(static=True))

    batch_shape = property(lambda self: self.values.shape[:-2])

    def map(self, fn):
        return dataclasses.replace(self, values=fn(self.values, (-1,)))

    def shard_rows(self, fold: Fold, side: str, parts: int, **places: Array) -> Any:
        """`shard_matrix` of a leaf whose values and `places` have the rows as axis -2.

        `places` are the arrays, by the names of their fields. Shards of columns ("summed") would
        keep different numbers of weights, so they are NotImplemented.
        """
        values = NotImplemented if side == "summed" else divided_shape(self.values, -2, parts)
        if values is NotImplemented:
            return values
        places = {name: divided_shape(array, -2, parts) for name, array in places.items()}
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
    """A mask of the `count` highest scores of the last axis; of equals the first, and NaN last.

    The threshold is found bit by bit, by counting the scores above it: 32 passes, which on a CPU
    cost far less than a sort.

    Example:
        >>> import jax.numpy as jnp
        >>> highest(jnp.array([3.0, 1.0, 3.0, 5.0]), 2).tolist()
        [True, False, False, True]
    """
    size, keys = scores.shape[-1], sort_keys(scores)
    if size <= PAIRWISE_SIZE:
        key, other = keys[..., :, None], keys[..., None, :]
        earlier = np.tri(size, k=-1, dtype=bool).reshape((1,) * (scores.ndim - 1) + (size, size))
        return ((other > key) | (other == key) & earlier).sum(-1) < count

    at_least = lambda trial: (keys >= trial).sum(-1, keepdims=True)
    threshold = nth_key(at_least, count, (*scores.shape[:-1], 1))
    above, equal = keys > threshold, keys == threshold
    left = count - above.sum(-1, keepdims=True)
    return above | equal & (jnp.cumsum(equal, -1) <= left)


def sort_keys(scores: Array) -> Array:
    """Integers (uint32) in the order of the scores; that of NaN is 0, below all others.

    Example:
        >>> keys = sort_keys(jnp.array([-1.0, -0.0, 0.0, 2.0, jnp.nan]))
        >>> jnp.argsort(keys).tolist(), bool(keys[1] == keys[2])
        ([4, 0, 1, 2, 3], True)
    """
    scores = scores.astype(jnp.float32)
    bits = lax.bitcast_convert_type(jnp.where(scores == 0, 0.0, scores), jnp.uint32)  # -0 is 0
    sign = jnp.uint32(1 << 31)
    keys = jnp.where(bits < sign, bits | sign, ~bits)
    return jnp.where(jnp.isnan(scores), jnp.uint32(0), keys)


def nth_key(at_least: Callable[[Array], Array], count: Array | int, shape: tuple = ()) -> Array:
    """The highest keys (*shape) that at least `count` keys reach; `at_least` counts these.

    Example:
        >>> keys = sort_keys(jnp.array([3.0, 1.0, 3.0, 5.0]))
        >>> bool(nth_key(lambda trial: (keys >= trial).sum(), 2) == keys[0])
        True
    """

    def add_bit(i, threshold):
        trial = threshold | jnp.uint32(1 << 31) >> i.astype(jnp.uint32)
        return jnp.where(at_least(trial) >= count, trial, threshold)

    return lax.fori_loop(0, 32, add_bit, jnp.zeros(shape, jnp.uint32))


def compressed(matrix: Array, mask: Array, count: int) -> tuple[Array, Array]:
    """(entries, places): the `count` entries of the last axis that a mask keeps, in order."""
    places = lax.platform_dependent(
        mask,
        cpu=functools.partial(_put_places, count=count),
        default=lambda mask: jnp.argsort(~mask, axis=-1, stable=True)[..., :count],
    )
    return jnp.take_along_axis(matrix, places, -1), places


def _put_places(mask, count):
    """The places (..., count) int32 of the entries that `mask` keeps.

    Each place is scattered to its rank: one pass, in a fraction of a sort's time on a CPU.
    """
    size = mask.shape[-1]
    index = jnp.arange(size, dtype=jnp.int32)
    if size <= PAIRWISE_SIZE:
        order = jnp.cumsum(mask, -1, dtype=jnp.int32)
        wanted = jnp.arange(1, count + 1).reshape((1,) * (mask.ndim - 1) + (count, 1))
        matches = mask[..., None, :] & (order[..., None, :] == wanted)
        index = jnp.broadcast_to(index, matches.shape)
        return jnp.where(matches, index, 0).sum(-1, dtype=jnp.int32)
    rows = lax.collapse(mask, 0, mask.ndim - 1)
    order = jnp.where(rows, jnp.cumsum(rows, -1, dtype=jnp.int32) - 1, count)
    row = jnp.broadcast_to(jnp.arange(len(rows))[:, None], order.shape)
    places = jnp.zeros((len(rows), count), jnp.int32)
    index = jnp.broadcast_to(index, order.shape)
    return places.at[row, order].set(index, mode="drop").reshape(*mask.shape[:-1], count)


def index_dtype(size: int) -> Any:
    """The narrowest unsigned integer dtype that holds `size` − 1."""
    return next(d for d in (jnp.uint8, jnp.uint16, jnp.uint32) if size - 1 <= jnp.iinfo(d).max)


def narrow_indices(indices: Array, size: int) -> Array:
    """Indices below `size` in the narrowest unsigned integers that hold them."""
    return indices.astype(index_dtype(size))


def decoded_values(values: Any) -> Array:
    """The values (*stack, n, kept) of a leaf, an array or encoded, in f32."""
    if isinstance(values, MatrixLeaf):
        return values.rows()
    return (values.decode() if isinstance(values, Encoded) else values).astype(jnp.float32)


def cut_values(values: Any, n: int, kept: int) -> Any:
    """The first `kept` values of the first n rows, of NumPy arrays."""
    if isinstance(values, MatrixLeaf):
        return values.cut(dataclasses.replace(values.fold, kept=(n,), summed=(kept,)))
    return values[..., :n, :kept]


def slice_values(values: Any, start: Array, size: int) -> Any:
    """Rows [start, start + size) of the values of an unstacked leaf."""
    if isinstance(values, MatrixLeaf):
        return values.slice_rows(start, size)
    values = values.decode() if isinstance(values, Encoded) else values
    return lax.dynamic_slice_in_dim(values, start, size, 0)


def take_values(values: Any, index: Array) -> Array:
    """Rows `index` (m,) of the values of an unstacked leaf, in f32."""
    if isinstance(values, MatrixLeaf):
        return values.take_rows(index)
    return (values.decode() if isinstance(values, Encoded) else values)[index].astype(jnp.float32)
