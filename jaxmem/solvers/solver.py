"""Solver: a codec that wraps another one and finds better numbers for the same leaves."""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..calibration.statistics import Moments
from ..codecs.scaled import Scaled
from ..core.arguments import check_fields
from ..core.codec import CODEC, RowEncoder, has_independent_rows, row_unit
from ..core.fold import Fold, matrix_shape
from ..core.leaf import is_encoded


@dataclasses.dataclass(frozen=True)
class Solver(abc.ABC):
    """Wraps a codec that rounds to scales: `Int`, `Float`, `Codebook`.

    A subclass defines `spans`, which finds the scales of a matrix's groups, or `solve`, which makes
    the whole leaf.
    """

    codec: Any
    calibrated: ClassVar[bool] = False  # whether it needs stats
    by_rows: ClassVar[bool] = True  # whether each row of a matrix is solved by itself
    sequential: ClassVar[bool] = False  # whether it settles one input after another

    def __post_init__(self):
        check_fields(self, codec=CODEC)
        if not isinstance(self.codec, Scaled):
            name = type(self).__name__
            raise TypeError(f"{name} takes an Int, Float or Codebook, got {self.codec}")

    def encode(self, w: Any, axes: tuple[int, ...] = (-2,), stats: Moments | None = None) -> Any:
        """The leaf of `w`, of the wrapped codec's class; one layer of a stack at a time."""
        if is_encoded(w):
            raise TypeError(f"{type(self).__name__} takes a dense weight: in a Chain it is first")
        if stats is None and self.calibrated and not isinstance(w, jax.core.Tracer):
            raise ValueError(f"{type(self).__name__} wants the stats of what the weight is fed")
        return _encode(self, w, tuple(axes), stats)

    @property
    def independent_rows(self) -> bool:
        """Whether the solver and its codec encode each row of a matrix by itself."""
        return self.by_rows and has_independent_rows(self.codec)

    @property
    def rows_apart(self) -> bool:
        """Whether each row is solved by itself once `row_solver` has seen all of them."""
        return self.by_rows

    @property
    def row_unit(self) -> int | None:
        """How many rows of a matrix the solver and its codec encode together."""
        return row_unit(self.codec) if self.by_rows else None

    def row_encoder(self, w: Any, axes: tuple[int, ...], stats: Any) -> RowEncoder | None:
        """Encodes some rows by `row_solver`; None where all rows are solved at once."""
        unit = row_unit(self.codec) if self.rows_apart else None
        if unit is None or not w.size:
            return None
        solve = self.row_solver(w, axes, stats)

        def encode(rows, start):
            matrix, fold = Fold.from_weight(rows, axes)
            return solve(matrix.astype(jnp.float32), fold, w.dtype)

        return RowEncoder(encode, unit, self.sequential)

    def row_solver(
        self, w: Array, axes: tuple[int, ...], stats: Any
    ) -> Callable[[Array, Fold, Any], Any]:
        """`solve` of some rows (r, k) of one layer `w`: a function of (rows, fold, dtype).

        What depends on the stats or on all rows is computed here, once.
        """
        return lambda rows, fold, dtype: self.solve(rows, fold, dtype, stats)

    def spans(self, matrix: Array, stats: Moments | None) -> tuple[Array, Array | None]:
        """The scales and zeros (n, groups) of a matrix (n, k) in f32."""
        return self.codec.spans(matrix, stats)

    def solve(self, matrix: Array, fold: Fold, dtype: Any, stats: Moments | None) -> Any:
        """The leaf of a matrix (n, k) in f32."""
        return self.codec.round(matrix, *self.spans(matrix, stats), fold, dtype)


def rounding_codec(codec: Any) -> Scaled:
    """The innermost codec of nested solvers, which rounds."""
    return rounding_codec(codec.codec) if isinstance(codec, Solver) else codec


@functools.partial(jax.jit, static_argnums=(0, 2))
def _encode(solver: Solver, w: Array, axes: tuple[int, ...], stats: Moments | None) -> Any:
    """The leaf of `w`; a loop over the stack, so that only one layer is in f32 at a time."""
    if not w.size:  # no numbers to find
        return solver.codec.encode(w, axes)
    axes = tuple(a - w.ndim if a >= 0 else a for a in axes)
    depth = len(matrix_shape(w, axes)) - 2

    def layer(args):
        matrix, fold = Fold.from_weight(args[0], axes)
        return solver.solve(matrix.astype(jnp.float32), fold, w.dtype, args[1])

    for _ in range(depth):
        layer = functools.partial(lax.map, layer)
    return layer((w, stats))
