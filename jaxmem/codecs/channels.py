"""Inputs, Outputs: whole inputs or outputs of a matrix stay, dense: neurons, heads, channels."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..core.leaf import divided_shape
from ..core.matrix_leaf import MatrixLeaf
from .sparse import (
    Count,
    Sparse,
    SparseArray,
    checked_density,
    compressed,
    highest,
    index_dtype,
    kept_count,
    kept_of,
    narrow_values,
    pick_values,
    value_rows,
)


@dataclasses.dataclass(frozen=True)
class _Runs(Sparse):
    density: float = 0.5
    _: dataclasses.KW_ONLY
    size: int = 1

    def __post_init__(self):
        checked_density(self.density, type(self).__name__)
        if self.size < 1:
            raise ValueError(f"{type(self).__name__} takes runs of at least 1, got {self.size}")

    def _runs(self, count):
        """How many runs there are, and how many stay."""
        what = f"runs of {self.size} {type(self).__name__.lower()}"
        if count % self.size:
            raise ValueError(f"{what} do not divide {count}")
        runs = count // self.size
        return runs, kept_count(self.density, runs, what)


@dataclasses.dataclass(frozen=True)
class Inputs(_Runs):
    """Keeps the runs of `size` inputs that are largest in norm over all outputs.

    Of a feed-forward `down` these are its neurons, of an attention's `out` with the size of a head
    its heads. A product takes the kept inputs of x and nothing else. Stored as in a smaller matrix,
    and 1 or 2 bytes a run. `remove_neurons` and `remove_heads` make the model itself smaller. Li et
    al., 2017 (filters by norm).

    Raises:
        ValueError: a density that is not between 0 and 1, or keeps none or all; a size that does
            not divide the inputs.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> w = jnp.array([[1.0, 1.0], [3.0, 0.0], [0.0, 2.0], [0.1, 0.1]])  # inputs, outputs
        >>> Inputs(0.5).encode(w).decode().tolist()
        [[0.0, 0.0], [3.0, 0.0], [0.0, 2.0], [0.0, 0.0]]
        >>> jm.nbytes(Inputs(0.5, size=2).encode(w))  # 4 of 8 numbers, and which run
        17
    """

    def mask(self, scores, count: Count = kept_of):
        runs, kept = self._runs(scores.shape[-1])
        cut = scores.reshape(*scores.shape[:-1], runs, self.size)
        there = highest((cut * cut).sum((-3, -1)), count(runs, kept))
        there = jnp.repeat(there, self.size, -1)[..., None, :]
        return jnp.broadcast_to(there, scores.shape)

    def hold(self, matrix, mask, fold, dtype):
        runs, kept = self._runs(fold.k)
        there = mask.reshape(*mask.shape[:-1], runs, self.size).any((-3, -1))
        places = compressed(there, there, kept)[1]
        cut = matrix.reshape(*matrix.shape[:-1], runs, self.size)
        values = jnp.take_along_axis(cut, places[..., None, :, None], -2)
        values = values.reshape(*matrix.shape[:-1], kept * self.size)
        places = places.astype(index_dtype(runs))
        return InputsArray(values.astype(dtype), fold, jnp.dtype(dtype), places, self.size)


@dataclasses.dataclass(frozen=True)
class Outputs(_Runs):
    """Keeps the runs of `size` outputs that are largest in norm over all inputs.

    Of a feed-forward `up` these are its neurons. A product computes the kept outputs, and zeros for
    the others. Otherwise as `Inputs`.

    Raises:
        ValueError: a density that is not between 0 and 1, or keeps none or all; a size that does
            not divide the outputs.

    Example:
        >>> import jax.numpy as jnp
        >>> Outputs(0.5).encode(jnp.array([[1.0, 3.0], [2.0, 0.5]])).decode().tolist()
        [[0.0, 3.0], [0.0, 0.5]]
    """

    def mask(self, scores, count: Count = kept_of):
        n, k = scores.shape[-2:]
        runs, kept = self._runs(n)
        cut = scores.reshape(*scores.shape[:-2], runs, self.size * k)
        there = highest((cut * cut).sum(-1), count(runs, kept))
        return jnp.broadcast_to(jnp.repeat(there, self.size, -1)[..., None], scores.shape)

    def hold(self, matrix, mask, fold, dtype):
        runs, kept = self._runs(fold.n)
        there = mask.reshape(*mask.shape[:-2], runs, self.size * fold.k).any(-1)
        places = compressed(there, there, kept)[1]
        cut = matrix.reshape(*matrix.shape[:-2], runs, self.size * fold.k)
        values = jnp.take_along_axis(cut, places[..., None], -2)
        values = values.reshape(*matrix.shape[:-2], kept * self.size, fold.k)
        places = places.astype(index_dtype(runs))
        return OutputsArray(values.astype(dtype), fold, jnp.dtype(dtype), places, self.size)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class InputsArray(SparseArray):
    """Values (*stack, n, kept · run) of the kept runs of inputs, in order."""

    places: Array  # (*stack, kept) uint8, uint16 or uint32: which runs
    run: int = dataclasses.field(metadata=dict(static=True))

    def rows(self):
        return self._dense(value_rows(self.values), self.places[..., None, :])

    def _dense(self, values, places):
        """Rows (..., k) of values (..., kept · run) in runs `places` (..., 1 or n, kept)."""
        slot, there = _found(places, self.fold.k // self.run)
        cut = values.reshape(*values.shape[:-1], -1, self.run)
        dense = jnp.where(there[..., None], jnp.take_along_axis(cut, slot[..., None], -2), 0.0)
        return dense.reshape(*values.shape[:-1], self.fold.k)

    def slice_rows(self, start, size):
        return dataclasses.replace(self, values=narrow_values(self.values, start, size))

    def shard_matrix(self, fold, side, parts):
        if side == "summed":  # parts keep different numbers of inputs
            return NotImplemented
        return self.cut_rows(fold, parts)

    def take_rows(self, index):
        rows = self._dense(pick_values(self.values, index.reshape(-1)), self.places[None])
        return rows.reshape(*index.shape, self.fold.k)

    def matmul(self, x, precision=None):
        cut = x.reshape(x.shape[0], -1, self.run)
        read = cut[:, self.places.astype(jnp.int32)].reshape(x.shape[0], -1)
        return _product(read, self.values, precision)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OutputsArray(SparseArray):
    """Values (*stack, kept · run, k) of the kept runs of outputs, in order."""

    places: Array  # (*stack, kept) uint8, uint16 or uint32: which runs
    run: int = dataclasses.field(metadata=dict(static=True))

    def rows(self):
        slot, there = _found(self.places, self.fold.n // self.run)
        values = value_rows(self.values)
        cut = values.reshape(*values.shape[:-2], -1, self.run * self.fold.k)
        dense = jnp.where(there[..., None], jnp.take_along_axis(cut, slot[..., None], -2), 0.0)
        return dense.reshape(*values.shape[:-2], self.fold.n, self.fold.k)

    def slice_rows(self, start, size):
        """A leaf of runs of one output, which are all there, some of them zero."""
        rows, every = self.take_rows(start + jnp.arange(size)), jnp.arange(size)
        fold = dataclasses.replace(self.fold, kept=(size,))
        return dataclasses.replace(self, values=rows, places=every, run=1, fold=fold)

    def shard_matrix(self, fold, side, parts):
        values = divided_shape(self.values, -1, parts) if side == "summed" else NotImplemented
        if values is NotImplemented:  # runs of outputs keep different numbers of them
            return values
        return dataclasses.replace(self, values=values, fold=fold)

    def take_rows(self, index):
        at = index.reshape(-1)
        slot, there = _found(self.places, self.fold.n // self.run)
        of = at // self.run
        rows = pick_values(self.values, slot[of] * self.run + at % self.run)
        return jnp.where(there[of][:, None], rows, 0.0).reshape(*index.shape, self.fold.k)

    def matmul(self, x, precision=None):
        slot, there = _found(self.places, self.fold.n // self.run)
        y = _product(x, self.values, precision).reshape(x.shape[0], -1, self.run)
        return jnp.where(there[None, :, None], y[:, slot], 0.0).reshape(x.shape[0], self.fold.n)


def _found(places: Array, runs: int) -> tuple[Array, Array]:
    """Of each run its place among the kept (..., runs), and whether it is there at all."""
    there = jnp.zeros((*places.shape[:-1], runs), bool)
    there = jnp.put_along_axis(there, places.astype(jnp.int32), True, -1, inplace=False)
    return jnp.maximum(jnp.cumsum(there, -1, dtype=jnp.int32) - 1, 0), there


def _product(x: Array, values: Any, precision) -> Array:
    """x (m, k) . values^T (m, rows) in f32, values an array or encoded."""
    if isinstance(values, MatrixLeaf):
        return values.matmul(x, precision)
    values = value_rows(values) if not isinstance(values, Array) else values
    dims = (((1,), (1,)), ((), ()))
    return lax.dot_general(
        x, values.astype(x.dtype), dims, precision, preferred_element_type=jnp.float32
    )
