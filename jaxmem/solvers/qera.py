"""QERA: w ≈ Q(w) + u · v, the rank r that mends most of what Q(w) computes wrongly.

With H = E[x xᵀ] what is least is ‖(W − Q − U V) H^½‖²: the truncated SVD of (W − Q) H^½.
"""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from ..calibration.statistics import Moments
from ..codecs import Int, LowRank
from ..codecs.sum import SumArray
from ..core.fold import Fold, matrix_shape
from ..core.leaf import is_encoded
from .solver import Solver

BYTES = Int(8)


@dataclasses.dataclass(frozen=True)
class QERA(Solver):
    """Adds to any codec or solver a low-rank correction: `QERA(GPTQ(Search(Int(3, group=64))))`.

    Takes rank · (k + n) numbers more, held by `factors` (8 bits each, unless told otherwise; None
    for the weight's own dtype). With `rounds` above 1 the codec then encodes the weight less the
    correction, and the correction is found again, in turns, which lets it take out the large
    directions before anything is rounded; the pair that loses least is kept.

    Wants `stats`; with "diag" moments it is exact for inputs that do not go together. Holds one
    layer in f32, and two (k, k) matrices.

    Reference: Zhang et al., 2024 (QERA); Saha et al., 2024 (CALDERA, the turns).

    Raises:
        ValueError: rank or rounds below 1; a rank that saves nothing; a concrete weight, no stats.

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
    factors: Any = BYTES
    rounds: int = 1
    calibrated: ClassVar[bool] = True
    by_rows: ClassVar[bool] = False

    def __post_init__(self):
        LowRank(self.rank)  # says what is wrong with it
        if self.rounds < 1:
            raise ValueError(f"QERA takes at least 1 round, got {self.rounds}")

    def encode(self, w: Any, axes: tuple[int, ...] = (-2,), stats: Moments | None = None) -> Any:
        if is_encoded(w):
            raise TypeError("QERA takes a dense weight: in a Chain it is first")
        if stats is None and not isinstance(w, jax.core.Tracer):
            raise ValueError("QERA wants the stats of what the weight is fed")
        return _encode(self, w, tuple(a - w.ndim if a >= 0 else a for a in axes), stats)


@functools.partial(jax.jit, static_argnums=(0, 2))
def _encode(how, w, axes, stats):
    """Maps over the stack, so that what is held in f32 is one layer."""
    layer = lambda args: _layer(how, args[0], axes, args[1])
    depth = len(matrix_shape(w, axes)) - 2
    for _ in range(depth):
        layer = functools.partial(lax.map, layer)
    return layer((w, stats))


def _layer(how, w, axes, stats):
    wide, low_rank = w.astype(jnp.float32), LowRank(how.rank)
    held = lambda leaf: leaf.astype(jnp.float32).decode()

    def turn(mended):
        base = how.codec.encode((wide - mended).astype(w.dtype), axes, stats)
        rest = low_rank.encode(wide - held(base), axes, stats).astype(w.dtype)
        rest = (
            rest.map(how.factors.encode)
            if how.factors
            else rest.map(lambda f, _: f.astype(w.dtype))
        )
        leaf = SumArray((base, rest))
        return leaf, held(rest), _loss(wide - held(leaf), axes, stats)

    leaf, mended, least = turn(jnp.zeros_like(wide))
    for _ in range(how.rounds - 1):
        other, mended, loss = turn(mended)
        better = loss < least
        leaf = jax.tree.map(functools.partial(jnp.where, better), other, leaf)
        least = jnp.where(better, loss, least)
    return leaf


def _loss(wrong, axes, stats):
    """‖x · wrong‖² over the inputs that were seen."""
    matrix = Fold.from_weight(wrong, axes)[0]
    if stats is None:
        return jnp.square(matrix).sum()
    if stats.second.ndim == 1:
        return (jnp.square(matrix) * stats.second[None]).sum()
    return ((matrix @ stats.second) * matrix).sum()
