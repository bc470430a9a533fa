"""Inputs, Outputs: whole inputs or outputs of a matrix are kept: neurons, heads, channels."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..core.codec import RowEncoder
from ..core.fold import Fold, matrix_shape
from ..core.leaf import divided_shape
from ..core.matrix_leaf import MatrixLeaf
from ..core.row_slices import as_bits, from_bits, scan_rows
from .sparse import (
    Count,
    DensitySparse,
    SparseArray,
    codec_count,
    compressed,
    decoded_values,
    highest,
    narrow_indices,
    slice_values,
    take_values,
)


@dataclasses.dataclass(frozen=True)
class _Runs(DensitySparse):
    density: float = 0.5
    _: dataclasses.KW_ONLY
    size: int = 1

    unit = property(lambda self: f"runs of {self.size} {type(self).__name__.lower()}")

    def __post_init__(self):
        super().__post_init__()
        if self.size < 1:
            raise ValueError(f"{type(self).__name__} takes runs of at least 1, got {self.size}")

    def _runs(self, count):
        """(runs of `count` inputs or outputs, runs that are kept)."""
        if count % self.size:
            raise ValueError(f"{self.unit} do not divide {count}")
        runs = count // self.size
        return runs, self.kept(runs)


@dataclasses.dataclass(frozen=True)
class Inputs(_Runs):
    """Keeps the runs of `size` inputs that are largest in norm over all outputs.

    The inputs of a feed-forward `down` are its neurons; runs of an attention's `out` are its heads,
    if `size` is the size of a head. A product reads the kept inputs of x and nothing else. The
    bytes are those of the smaller matrix, and 1 or 2 for each run. `remove_neurons` and
    `remove_heads` make the model itself smaller. Li et al., 2017 (filters by norm).

    Raises:
        ValueError: `density` is not between 0 and 1, or keeps none or all runs; `size` does not
            divide the inputs.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> w = jnp.array([[1.0, 1.0], [3.0, 0.0], [0.0, 2.0], [0.1, 0.1]])  # inputs, outputs
        >>> Inputs(0.5).encode(w).decode().tolist()
        [[0.0, 0.0], [3.0, 0.0], [0.0, 2.0], [0.0, 0.0]]
        >>> jm.nbytes(Inputs(0.5, size=2).encode(w))  # 4 of 8 numbers, and which run
        17
    """

    def mask(self, scores, count: Count = codec_count):
        return jnp.broadcast_to(self._kept(self._norms(scores), count), scores.shape)

    def row_encoder(self, w, axes, stats):
        """Encodes some rows, given which inputs are kept."""
        matrix = lambda rows: Fold.from_weight(rows, axes)[0].astype(jnp.float32)
        runs, _ = self._runs(matrix_shape(w, axes)[-1])
        step = lambda norms, rows, _: norms + self._norms(matrix(rows))
        is_kept = self._kept(scan_rows(step, jnp.zeros(runs), w, axes))

        def encode(rows, start):
            matrix, fold = Fold.from_weight(rows, axes)
            return self.encode_masked(matrix, is_kept, fold, w.dtype)

        return RowEncoder(encode)

    def _norms(self, scores):
        """The squared norms (*stack, runs) of the runs of inputs."""
        runs, _ = self._runs(scores.shape[-1])
        cut = scores.reshape(*scores.shape[:-1], runs, self.size)
        return (cut * cut).sum((-3, -1))

    def _kept(self, norms, count: Count = codec_count):
        """Which inputs are kept, (*stack, 1, k)."""
        runs = norms.shape[-1]
        is_kept = highest(norms, count(runs, self.kept(runs)))
        return jnp.repeat(is_kept, self.size, -1)[..., None, :]

    def encode_masked(self, matrix, mask, fold, dtype):
        runs, kept = self._runs(fold.k)
        is_kept = mask.reshape(*mask.shape[:-1], runs, self.size).any((-3, -1))
        places = compressed(is_kept, is_kept, kept)[1]
        cut = matrix.reshape(*matrix.shape[:-1], runs, self.size)
        values = jnp.take_along_axis(cut, places[..., None, :, None], -2)
        values = values.reshape(*matrix.shape[:-1], kept * self.size)
        places = narrow_indices(places, runs)
        return InputsArray(values.astype(dtype), fold, jnp.dtype(dtype), places, self.size)


@dataclasses.dataclass(frozen=True)
class Outputs(_Runs):
    """Keeps the runs of `size` outputs that are largest in norm over all inputs.

    The outputs of a feed-forward `up` are its neurons. A product computes the kept outputs, and
    zeros for the others. Bytes and options are those of `Inputs`.

    Raises:
        ValueError: `density` is not between 0 and 1, or keeps none or all runs; `size` does not
            divide the outputs.

    Example:
        >>> import jax.numpy as jnp
        >>> Outputs(0.5).encode(jnp.array([[1.0, 3.0], [2.0, 0.5]])).decode().tolist()
        [[0.0, 3.0], [0.0, 0.5]]
    """

    def mask(self, scores, count: Count = codec_count):
        n, k = scores.shape[-2:]
        runs, kept = self._runs(n)
        cut = scores.reshape(*scores.shape[:-2], runs, self.size * k)
        is_kept = highest((cut * cut).sum(-1), count(runs, kept))
        return jnp.broadcast_to(jnp.repeat(is_kept, self.size, -1)[..., None], scores.shape)

    def encode_masked(self, matrix, mask, fold, dtype):
        runs, kept = self._runs(fold.n)
        is_kept = mask.reshape(*mask.shape[:-2], runs, self.size * fold.k).any(-1)
        places = compressed(is_kept, is_kept, kept)[1]
        cut = matrix.reshape(*matrix.shape[:-2], runs, self.size * fold.k)
        values = jnp.take_along_axis(cut, places[..., None], -2)
        values = values.reshape(*matrix.shape[:-2], kept * self.size, fold.k)
        places = narrow_indices(places, runs)
        return OutputsArray(values.astype(dtype), fold, jnp.dtype(dtype), places, self.size)

    def encode_by_slices(self, w, axes, stats):
        n, k = matrix_shape(w, axes)
        runs, kept = self._runs(n)
        fold = Fold.of(w, axes)
        rows_of = lambda block: Fold.from_weight(block, axes)[0]

        def add_norms(norms, block, start):
            new = jnp.square(rows_of(block).astype(jnp.float32)).sum(-1)
            return lax.dynamic_update_slice_in_dim(norms, new, start, 0)

        norms = scan_rows(add_norms, jnp.zeros(n), w, axes)
        is_kept = highest(norms.reshape(runs, self.size).sum(-1), kept)
        places = compressed(is_kept, is_kept, kept)[1]
        slot = jnp.where(is_kept, jnp.cumsum(is_kept, dtype=jnp.int32) - 1, kept)  # of each run

        def put_rows(values, block, start):
            rows = as_bits(rows_of(block))
            index = start + jnp.arange(len(rows))
            at = slot[index // self.size] * self.size + index % self.size
            return values.at[at].set(rows, mode="drop")

        values = as_bits(jnp.zeros((kept * self.size, k), w.dtype))
        values = from_bits(scan_rows(put_rows, values, w, axes), w)
        return OutputsArray(
            values, fold, jnp.dtype(w.dtype), narrow_indices(places, runs), self.size
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class InputsArray(SparseArray):
    """Values (*stack, n, kept · run) of the kept runs of inputs, in order."""

    places: Array  # (*stack, kept) uint8, uint16 or uint32: which runs
    run: int = dataclasses.field(metadata=dict(static=True))

    def rows(self):
        return self._dense(decoded_values(self.values), self.places[..., None, :])

    def _dense(self, values, places):
        """Rows (..., k) of values (..., kept · run) in runs `places` (..., 1 or n, kept)."""
        slot, is_kept = _run_slots(places, self.fold.k // self.run)
        cut = values.reshape(*values.shape[:-1], values.shape[-1] // self.run, self.run)
        dense = jnp.where(is_kept[..., None], jnp.take_along_axis(cut, slot[..., None], -2), 0.0)
        return dense.reshape(*values.shape[:-1], self.fold.k)

    def slice_rows(self, start, size):
        return dataclasses.replace(self, values=slice_values(self.values, start, size))

    def shard_matrix(self, fold, side, parts):
        return self.shard_rows(fold, side, parts)

    def take_rows(self, index):
        rows = self._dense(take_values(self.values, index.reshape(-1)), self.places[None])
        return rows.reshape(*index.shape, self.fold.k)

    def matmul(self, x, precision=None):
        cut = x.reshape(x.shape[0], x.shape[1] // self.run, self.run)
        read = lax.collapse(cut[:, self.places.astype(jnp.int32)], 1)
        return _product(read, self.values, precision)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OutputsArray(SparseArray):
    """Values (*stack, kept · run, k) of the kept runs of outputs, in order."""

    places: Array  # (*stack, kept) uint8, uint16 or uint32: which runs
    run: int = dataclasses.field(metadata=dict(static=True))

    def rows(self):
        slot, is_kept = _run_slots(self.places, self.fold.n // self.run)
        values = decoded_values(self.values)
        runs = values.shape[-2] // self.run
        cut = values.reshape(*values.shape[:-2], runs, self.run * self.fold.k)
        dense = jnp.where(is_kept[..., None], jnp.take_along_axis(cut, slot[..., None], -2), 0.0)
        return dense.reshape(*values.shape[:-2], self.fold.n, self.fold.k)

    def slice_rows(self, start, size):
        """A leaf of runs of one output, all of which are kept, some of them zero."""
        rows, places = self.take_rows(start + jnp.arange(size)), jnp.arange(size)
        fold = dataclasses.replace(self.fold, kept=(size,))
        return dataclasses.replace(self, values=rows, places=places, run=1, fold=fold)

    def shard_matrix(self, fold, side, parts):
        values = divided_shape(self.values, -1, parts) if side == "summed" else NotImplemented
        if values is NotImplemented:  # shards of outputs would keep different numbers of them
            return values
        return dataclasses.replace(self, values=values, fold=fold)

    def take_rows(self, index):
        flat = index.reshape(-1)
        slot, is_kept = _run_slots(self.places, self.fold.n // self.run)
        run = flat // self.run
        rows = take_values(self.values, slot[run] * self.run + flat % self.run)
        return jnp.where(is_kept[run][:, None], rows, 0.0).reshape(*index.shape, self.fold.k)

    def matmul(self, x, precision=None):
        slot, is_kept = _run_slots(self.places, self.fold.n // self.run)
        y = _product(x, self.values, precision)
        y = y.reshape(x.shape[0], y.shape[1] // self.run, self.run)
        return jnp.where(is_kept[None, :, None], y[:, slot], 0.0).reshape(x.shape[0], self.fold.n)


def _run_slots(places: Array, runs: int) -> tuple[Array, Array]:
    """(slot, is_kept) of each of `runs` runs, (..., runs): its index in `places`, if it is kept."""
    is_kept = jnp.zeros((*places.shape[:-1], runs), bool)
    is_kept = jnp.put_along_axis(is_kept, places.astype(jnp.int32), True, -1, inplace=False)
    return jnp.maximum(jnp.cumsum(is_kept, -1, dtype=jnp.int32) - 1, 0), is_kept


def _product(x: Array, values: Any, precision) -> Array:
    """x (m, k) . values^T: (m, rows) f32, of values (rows, k), an array or encoded."""
    if isinstance(values, MatrixLeaf):
        return values.matmul(x, precision)
    values = decoded_values(values) if not isinstance(values, Array) else values
    dims = (((1,), (1,)), ((), ()))
    return lax.dot_general(
        x, values.astype(x.dtype), dims, precision, preferred_element_type=jnp.float32
    )
