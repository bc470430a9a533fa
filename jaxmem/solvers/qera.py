"""QERA: w ≈ Q(w) + u · v, the correction of rank r that minimises the error of the output.

With H = E[x xᵀ], ‖(W − Q − U V) H^½‖² is least for the truncated SVD of (W − Q) H^½.
"""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..calibration.statistics import Moments
from ..codecs import Int, LowRank
from ..codecs.sum import SumArray
from ..core.arguments import check_fields
from ..core.codec import CODEC, OPTIONAL_CODEC
from ..core.fold import Fold, matrix_shape
from ..core.layer_encoding import encode_layer
from ..core.leaf import is_encoded
from ..core.remainder import Remainder
from ..core.row_slices import scan_rows
from .solver import Solver

INT8 = Int(8)


@dataclasses.dataclass(frozen=True)
class QERA(Solver):
    """Adds a low-rank correction to any codec or solver: `QERA(GPTQ(Search(Int(3, group=64))))`.

    The correction takes rank · (k + n) more numbers, encoded with `factors` (8 bits each by
    default; with None they have the weight's dtype). With `rounds` above 1, the codec encodes the
    weight minus the correction, the correction is found again, and so on: large directions are
    removed before the weight is rounded. The round of least error is kept.

    Needs `stats`. With "diag" moments the correction is optimal for uncorrelated inputs.

    Zhang et al., 2024 (QERA); Saha et al., 2024 (CALDERA, the rounds).

    Raises:
        ValueError: `rank` or `rounds` is below 1; the rank saves nothing; a concrete weight is
            encoded without stats.

    Example:
        >>> import jax, jaxmem as jm
        >>> w, x = (jax.random.normal(jax.random.key(i), (128, 64)) for i in range(2))
        >>> x = x @ jax.random.normal(jax.random.key(2), (64, 8)) @ w[:8, :64]
        >>> fed = jm.stats(lambda p, x: x @ p["w"], {"w": w[:64]}, [(x,)])["w"]
        >>> error = lambda leaf: float(((x @ (leaf.decode() - w[:64])) ** 2).sum())
        >>> plain, mended = jm.Int(3).encode(w[:64]), QERA(jm.Int(3), 8).encode(w[:64], stats=fed)
        >>> error(mended) < error(plain) / 100
        True
    """

    rank: int = 32
    _: dataclasses.KW_ONLY
    factors: Any = INT8
    rounds: int = 1
    calibrated: ClassVar[bool] = True
    by_rows: ClassVar[bool] = False

    def __post_init__(self):
        check_fields(self, codec=CODEC, factors=OPTIONAL_CODEC)
        LowRank(self.rank)  # raises for a wrong rank
        if self.rounds < 1:
            raise ValueError(f"QERA takes at least 1 round, got {self.rounds}")

    def encode(self, w: Any, axes: tuple[int, ...] = (-2,), stats: Moments | None = None) -> Any:
        if is_encoded(w):
            raise TypeError("QERA takes a dense weight: in a Chain it is first")
        if stats is None and not isinstance(w, jax.core.Tracer):
            raise ValueError("QERA wants the stats of what the weight is fed")
        return _encode(self, w, tuple(a - w.ndim if a >= 0 else a for a in axes), stats)

    def encode_by_slices(self, w, axes, stats):
        return _encode_layer(self, w, axes, stats)


@functools.partial(jax.jit, static_argnums=(0, 2))
def _encode(codec: QERA, w: Array, axes: tuple[int, ...], stats: Moments | None) -> SumArray:
    """The leaf of `w`; a loop over the stack, so that only one layer is in f32 at a time."""
    layer = lambda args: _encode_layer(codec, args[0], axes, args[1])
    depth = len(matrix_shape(w, axes)) - 2
    for _ in range(depth):
        layer = functools.partial(lax.map, layer)
    return layer((w, stats))


def _encode_layer(codec: QERA, w: Any, axes: tuple[int, ...], stats: Moments | None) -> SumArray:
    """The leaf of one layer `w` of a stack, an array or a `Remainder`."""
    dtype, low_rank = jnp.dtype(w.dtype), LowRank(codec.rank)

    def one_round(correction):
        """(leaf, its correction), given the correction of the last round, or None."""
        smooth = w if correction is None else Remainder(w, (correction,), axes, dtype)
        base = encode_layer(codec.codec, smooth, axes, stats)
        error = Remainder(w, (base,), axes, jnp.dtype("float32"))
        rest = low_rank.encode_by_slices(error, axes, stats).astype(dtype)
        rest = (
            rest.map(codec.factors.encode)
            if codec.factors
            else rest.map(lambda f, _: f.astype(dtype))
        )
        return SumArray((base, rest)), rest

    leaf, correction = one_round(None)
    least = _output_error(w, leaf, axes, stats) if codec.rounds > 1 else None
    for _ in range(codec.rounds - 1):
        other, correction = one_round(correction)
        error = _output_error(w, other, axes, stats)
        better = error < least
        leaf = jax.tree.map(functools.partial(jnp.where, better), other, leaf)
        least = jnp.where(better, error, least)
    return leaf


def _output_error(w: Any, leaf: SumArray, axes: tuple[int, ...], stats: Moments | None) -> Array:
    """E‖x · (w − leaf)‖² over the inputs x of the stats; ‖w − leaf‖² without stats."""

    def add(total, rows, _):
        matrix = Fold.from_weight(rows, axes)[0]
        if stats is None:
            return total + jnp.square(matrix).sum()
        if stats.second.ndim == 1:
            return total + (jnp.square(matrix) * stats.second[None]).sum()
        return total + ((matrix @ stats.second) * matrix).sum()

    error = Remainder(w, leaf.parts, axes, jnp.dtype("float32"))
    return scan_rows(add, jnp.float32(0), error, axes)
