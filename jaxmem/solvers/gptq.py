"""GPTQ: round one input's weights after the other, later inputs making up for each error.

What is least is ‖x · (w − ŵ)‖² over the inputs x that were seen (Frantar et al., 2022).
"""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import Array, lax

from ..calibration.statistics import Moments
from ..codecs import Codebook, Int, KMeans
from ..codecs.scale_rounding import divisor, finite_scale
from ..codecs.scaled import spread
from ..core.fold import Fold
from .coordinate_descent import losses, refit, settle_again
from .obs import by_energy, inverse_factor, sweep
from .solver import Solver, rounding


@dataclasses.dataclass(frozen=True)
class GPTQ(Solver):
    """Wraps a codec, or a solver that finds its scales: `GPTQ(Search(Int(4, group=64)))`.

    Scales and zeros, or the levels of `KMeans`, are found before and stay ("static groups"), so
    that with `act_order` inputs are rounded in falling order of E[x²] and a group still lies
    together in memory. `damping` is added to the Gram matrix, times its mean diagonal; it is raised
    where the matrix is singular. An input that was never fed is rounded to nearest and shares no
    error.

    Each of `turns` then refits the scales to the codes, and settles every weight once more given
    all others (`descent`); rows that lose less by it are kept. It helps most at few bits.

    Wants `stats` with "gram" moments. Holds, beside one layer in f32, three (k, k) matrices and
    two of the layer's size. In f32.

    Raises:
        TypeError: a codec that rounds neither to scales nor to levels.
        ValueError: negative damping or turns; encoding a concrete weight without Gram moments.

    Example:
        >>> import jax, jaxmem as jm
        >>> w = jax.random.normal(jax.random.key(0), (64, 32))
        >>> x = jax.random.normal(jax.random.key(1), (256, 8)) @ w[:8].repeat(2, 1)
        >>> params, fn = {"w": w}, lambda params, x: x @ params["w"]
        >>> stats = jm.stats(fn, params, [(x,)])
        >>> enc = lambda codec: jm.decode(jm.encode(params, {"w": codec}, stats=stats))
        >>> error = lambda codec: float(((fn(enc(codec), x) - fn(params, x)) ** 2).sum())
        >>> error(GPTQ(jm.Int(4))) < error(jm.Int(4)) / 4
        True
    """

    _: dataclasses.KW_ONLY
    damping: float = 0.01
    act_order: bool = True
    turns: int = 0
    calibrated: ClassVar[bool] = True

    def __post_init__(self):
        finds_scales = isinstance(self.codec, Solver) and not isinstance(self.codec, GPTQ)
        if not finds_scales and not isinstance(self.codec, KMeans):
            super().__post_init__()
        if not self.damping >= 0:
            raise ValueError(f"GPTQ takes a damping of at least 0, got {self.damping}")
        if self.turns < 0:
            raise ValueError(f"GPTQ takes at least 0 turns, got {self.turns}")

    def solve(self, matrix: Array, fold: Fold, dtype: Any, stats: Moments | None) -> Any:
        """The leaf of a matrix (n, k) in f32; without stats (traced) as if inputs were white."""
        grid, k = rounding(self.codec), matrix.shape[-1]
        scale, zero = self.codec.spans(matrix, stats)
        if matrix.size == 0:
            return grid.round(matrix, scale, zero, fold, dtype)
        gram = jnp.eye(k) if stats is None else stats.second
        if gram.ndim != 2:
            raise ValueError('GPTQ wants stats of moments="gram", got "diag"')
        order = by_energy(gram) if self.act_order else jnp.arange(k)
        leaf = grid.round(matrix, scale, zero, fold, dtype)
        stored, low = leaf.scales(), getattr(leaf, "low", None)  # as decoded, (groups, n)
        held = zero if low is None else low.mT.astype(jnp.float32)
        group = order // min(grid.group or k, k)

        def settle(rows, i, j, state):
            at = group[jnp.minimum(j, k - 1)]
            zeros = None if held is None else held[:, at]
            return grid.snap(rows[i], stored[at], zeros), state

        factor = inverse_factor(gram[order][:, order], self.damping)
        solved = sweep(matrix.T[order], factor, settle)[0][jnp.argsort(order)].T
        if self.turns:
            stored = stored.swapaxes(0, 1)
            solved, found = self._descended(matrix, solved, stored, held, gram, order)
            scale = found.astype(scale.dtype) if _linear(grid) else scale
        return grid.round(solved, scale, zero, fold, dtype)

    def _descended(self, matrix, solved, scale, zero, gram, order):
        """(ŵ (n, k), scales as decoded (n, groups)) after the turns."""
        grid, k = rounding(self.codec), matrix.shape[-1]
        group = min(grid.group or k, k)
        mean = jnp.trace(gram) / k
        curve = jnp.where(mean > 0, gram + self.damping * mean * jnp.eye(k), jnp.eye(k))

        def turn(_, best):
            rounded, scale, loss = best
            if _linear(grid):
                units = rounded / spread(divisor(scale), group, k)
                scale = refit(matrix, units, scale, curve, group)
                scale = finite_scale(scale).astype(jnp.float32)
                rounded = units * spread(scale, group, k)

            def snap(values, j):
                at = j // group
                return grid.snap(values, scale[:, at], None if zero is None else zero[:, at])

            rounded = settle_again(matrix, rounded, curve, order, snap)
            now = losses(rounded - matrix, curve)
            better = (now < loss)[:, None]
            scale = jnp.where(better, scale, best[1]) if _linear(grid) else scale
            return jnp.where(better, rounded, best[0]), scale, jnp.minimum(now, loss)

        first = (solved, scale, losses(solved - matrix, curve))
        return lax.fori_loop(0, self.turns, turn, first)[:2]


def _linear(grid):
    """Whether ŵ is an f16 scale times what a code stands for."""
    return isinstance(grid, Int | Codebook)
