"""Solver: a codec that finds better numbers for another one, and leaves that one's leaves."""

import abc
import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..calibration.statistics import Moments
from ..codecs import Int
from ..codecs.scaled import Scaled
from ..core.codec import has_independent_rows
from ..core.fold import Fold, matrix_shape
from ..core.leaf import is_encoded


@dataclasses.dataclass(frozen=True)
class Solver(abc.ABC):
    """Wraps a codec that rounds to scales: `Int`, `Float`, `Codebook`.

    A subclass says how it finds the scales of the groups of a matrix, or the leaf itself.
    """

    codec: Any
    calibrated: ClassVar[bool] = False  # whether it cannot do without stats
    by_rows: ClassVar[bool] = True  # whether the rows of a matrix are solved each by itself

    def __post_init__(self):
        if not isinstance(self.codec, Int | Scaled):
            name = type(self).__name__
            raise TypeError(f"{name} takes an Int, Float or Codebook, got {self.codec}")

    def encode(self, w: Any, axes: tuple[int, ...] = (-2,), stats: Moments | None = None) -> Any:
        """The leaf of `w`, one layer of a stack at a time, as `Int.encode` and its kin give it."""
        if is_encoded(w):
            raise TypeError(f"{type(self).__name__} takes a dense weight: in a Chain it is first")
        if stats is None and self.calibrated and not isinstance(w, jax.core.Tracer):
            raise ValueError(f"{type(self).__name__} wants the stats of what the weight is fed")
        return _encode(self, w, tuple(axes), stats)

    @property
    def independent_rows(self) -> bool:
        return self.by_rows and has_independent_rows(self.codec)

    def spans(self, matrix: Array, stats: Moments | None) -> tuple[Array, Array | None]:
        """Scale and zero (n, groups) of a matrix (n, k) in f32."""
        return self.codec.spans(matrix, stats)

    def solve(self, matrix: Array, fold: Fold, dtype: Any, stats: Moments | None) -> Any:
        """The leaf of a matrix (n, k) in f32."""
        return self.codec.round(matrix, *self.spans(matrix, stats), fold, dtype)


def rounding(codec: Any) -> Int | Scaled:
    """The codec that a solver rounds by in the end."""
    return rounding(codec.codec) if isinstance(codec, Solver) else codec


@functools.partial(jax.jit, static_argnums=(0, 2))
def _encode(solver, w, axes, stats):
    """Maps over the stack, so that what is held in f32 is one layer."""
    axes = tuple(a - w.ndim if a >= 0 else a for a in axes)
    depth = len(matrix_shape(w, axes)) - 2

    def layer(args):
        matrix, fold = Fold.from_weight(args[0], axes)
        return solver.solve(matrix.astype(jnp.float32), fold, w.dtype, args[1])

    for _ in range(depth):
        layer = functools.partial(lax.map, layer)
    return layer((w, stats))
