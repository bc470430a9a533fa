"""Pruner: a sparse codec whose mask is chosen by a score other than the magnitude: Wanda, RIA."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import Array, lax

from ..codecs import Chain
from ..codecs.sparse import Sparse
from ..core.arguments import FUNCTION, check_fields
from ..core.codec import CODEC, RowEncoder, row_unit
from ..core.fold import Fold, matrix_shape
from ..core.row_replay import RowReplay
from ..core.row_slices import scan_rows
from .pruning_scores import SCORES_OF_A_ROW, ria, wanda
from .solver import Solver


@dataclasses.dataclass(frozen=True)
class Pruner(Solver):
    """Wraps a sparse codec (`Bitmask`, `NM`, ...), or a `Chain` that begins with one."""

    def __post_init__(self):
        check_fields(self, codec=CODEC, score=FUNCTION)
        if not isinstance(self.pattern, Sparse):
            name = type(self).__name__
            raise TypeError(f"{name} takes a sparse codec or a Chain of one, got {self.codec}")

    @property
    def pattern(self) -> Sparse:
        """The sparse codec."""
        return self.codec.codecs[0] if isinstance(self.codec, Chain) else self.codec

    @property
    def values(self) -> tuple:
        """The codecs that encode the kept values."""
        return self.codec.codecs[1:] if isinstance(self.codec, Chain) else ()

    def scores(self, matrix: Array, stats: Any) -> Array:
        """The scores (n, k) of the weights of a matrix (n, k) in f32."""
        raise NotImplementedError(f"{type(self).__name__} has no scores")

    def solve(self, matrix: Array, fold: Fold, dtype: Any, stats: Any) -> Any:
        """The leaf of a matrix (n, k) in f32."""
        return self.by_scores(self.scores(matrix, stats), matrix, fold, dtype)

    def by_scores(self, scores: Array, matrix: Array, fold: Fold, dtype: Any) -> Any:
        """The leaf of a matrix (n, k) in f32, given the scores (n, k) of its weights."""
        mask = self.pattern.mask(scores)
        leaf = self.pattern.encode_masked(matrix, mask, fold, dtype)
        for codec in self.values:
            leaf = codec.encode(leaf)
        return leaf


@dataclasses.dataclass(frozen=True)
class Prune(Pruner):
    """Keeps the weights of the highest `score`, from `jm.solvers.pruning_scores` or your own.

    `score(matrix, stats)` takes the matrix (n, k) in f32 and the weight's stats, and returns scores
    (n, k). A plan with a function in it cannot be saved; `Wanda` and `RIA` have fixed scores, and
    can be.

    Raises:
        TypeError: `codec` is not sparse.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> smallest = Prune(jm.Bitmask(0.5), lambda matrix, stats: -abs(matrix))
        >>> smallest.encode(jnp.array([[3.0], [1.0]])).decode().tolist()
        [[0.0], [1.0]]
    """

    score: Callable[[Array, Any], Array]

    @property
    def by_rows(self) -> bool:
        """Whether the score of a row does not depend on other rows."""
        return self.score in SCORES_OF_A_ROW

    def scores(self, matrix, stats):
        return self.score(matrix, stats)

    def row_encoder(self, w, axes, stats):
        """Encodes some rows; of a score of your own its sums over all rows are computed first.

        A score that needs other rows in another way is computed of all of them.
        """
        unit = row_unit(self.codec)
        if self.by_rows or unit is None or not w.size:
            return super().row_encoder(w, axes, stats)
        axes = tuple(a - w.ndim if a >= 0 else a for a in axes)
        replay = RowReplay.of(lambda matrix: self.scores(matrix, stats), w, axes)
        matrix = lambda w: Fold.from_weight(w, axes)[0].astype(jnp.float32)
        if replay is None:
            scores = self.scores(matrix(w.dense() if hasattr(w, "dense") else w), stats)
            count = lambda rows: Fold.of(rows, axes).n
            of_rows = lambda rows, at: lax.dynamic_slice_in_dim(scores, at, count(rows), 0)
        else:
            of_rows = replay.rows

        def encode(rows, start):
            scores = of_rows(rows, start)
            return self.by_scores(scores, matrix(rows), Fold.of(rows, axes), w.dtype)

        return RowEncoder(encode, unit)


@dataclasses.dataclass(frozen=True)
class Wanda(Pruner):
    """Keeps the weights of the highest |w| · √E[x²], unchanged. Sun et al., 2023.

    "diag" stats are enough.

    Raises:
        TypeError: `codec` is not sparse.
        ValueError: there are no stats.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> x, w = jnp.array([[1.0, 9.0]]), jnp.array([[3.0], [1.0]])
        >>> fed = jm.Moments(x[0] ** 2, x[0], x[0], jnp.ones(()))
        >>> Wanda(jm.Bitmask(0.5)).encode(w, stats=fed).decode().tolist()
        [[0.0], [1.0]]
    """

    calibrated: ClassVar[bool] = True

    def scores(self, matrix, stats):
        return wanda(matrix, stats)


@dataclasses.dataclass(frozen=True)
class RIA(Pruner):
    """Keeps the weights that are large relative to their row and column, times E[x²]^¼, unchanged.

    Zhang et al., 2024 (relative importance and activations).

    Raises:
        TypeError: `codec` is not sparse.
        ValueError: there are no stats.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> w = jnp.array([[1.0, 1.0], [3.0, 1.0]])  # inputs, outputs
        >>> fed = jm.Moments(*[jnp.ones(2)] * 3, jnp.ones(()))
        >>> RIA(jm.Bitmask(0.5)).encode(w, stats=fed).decode().tolist()
        [[0.0, 1.0], [3.0, 0.0]]
    """

    calibrated: ClassVar[bool] = True
    by_rows: ClassVar[bool] = False
    rows_apart: ClassVar[bool] = True

    def scores(self, matrix, stats):
        return ria(matrix, stats)

    def row_solver(self, w, axes, stats):
        """`solve` of some rows, given the sizes of the columns of all of them."""
        size = lambda rows: jnp.abs(Fold.from_weight(rows, axes)[0].astype(jnp.float32)).sum(0)
        step = lambda columns, rows, _: columns + size(rows)
        columns = scan_rows(step, jnp.zeros(matrix_shape(w, axes)[-1]), w, axes)
        scores = lambda rows: ria(rows, stats, columns)
        return lambda rows, fold, dtype: self.by_scores(scores(rows), rows, fold, dtype)
