"""GPTQ: rounds one input's weights after the other; later inputs compensate for each error.

It minimises ‖x · (w − ŵ)‖² over the inputs x of the calibration data (Frantar et al., 2022).
"""

import dataclasses
import functools
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import Array, lax

from ..calibration.statistics import Moments
from ..codecs import Codebook, Int, KMeans
from ..codecs.float16_scales import divisor, finite_scale
from ..codecs.scaled import repeat_groups
from ..core.arguments import check_fields
from ..core.codec import CODEC
from ..core.fold import Fold, matrix_shape
from .coordinate_descent import refit_scales, round_again, row_losses
from .inverse_hessian import by_energy, inverse_factor, sweep
from .solver import Solver, rounding_codec


@dataclasses.dataclass(frozen=True)
class GPTQ(Solver):
    """Wraps a codec, or a solver that finds its scales: `GPTQ(Search(Int(4, group=64)))`.

    Scales and zeros, or the levels of `KMeans`, are found first and stay ("static groups").
    Therefore `act_order`, which rounds inputs in falling order of E[x²], changes no group: its
    weights stay adjacent in memory. `damping` times the mean diagonal of the Gram matrix is added
    to its diagonal; it is raised if the matrix is singular. The weights of an input that was always
    zero are rounded to nearest, and their errors change no other weight.

    After that, each of `turns` refits the scales to the codes and rounds each weight again given
    all others (coordinate_descent.py). A row keeps the result if its loss falls. Turns help most at
    few bits.

    Needs `stats` with "gram" moments. Takes, beside one layer in f32, three (k, k) matrices and two
    of the layer's size, in f32.

    Raises:
        TypeError: `codec` rounds neither to scales nor to levels.
        ValueError: `damping` or `turns` is negative; a concrete weight is encoded without Gram
            moments.

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
    sequential: ClassVar[bool] = True

    def __post_init__(self):
        check_fields(self, codec=CODEC)
        finds_scales = isinstance(self.codec, Solver) and not isinstance(self.codec, GPTQ)
        if not finds_scales and not isinstance(self.codec, KMeans):
            super().__post_init__()
        if not self.damping >= 0:
            raise ValueError(f"GPTQ takes a damping of at least 0, got {self.damping}")
        if self.turns < 0:
            raise ValueError(f"GPTQ takes at least 0 turns, got {self.turns}")

    def solve(self, matrix: Array, fold: Fold, dtype: Any, stats: Moments | None) -> Any:
        """The leaf of a matrix (n, k) in f32; without stats (when traced) the Gram matrix is I."""
        return self.row_solver(matrix, (-1,), stats)(matrix, fold, dtype)

    def row_solver(self, w, axes, stats):
        """`solve` of some rows, given the order of inputs and the factor of the Gram matrix."""
        k = matrix_shape(w, axes)[-1]
        gram = jnp.eye(k) if stats is None else stats.second
        if gram.ndim != 2:
            raise ValueError('GPTQ wants stats of moments="gram", got "diag"')
        order = by_energy(gram) if self.act_order else jnp.arange(k)
        factor = inverse_factor(gram[order][:, order], self.damping) if w.size else None
        return functools.partial(self._solve, stats=stats, gram=gram, order=order, factor=factor)

    def _solve(self, matrix, fold, dtype, stats, gram, order, factor):
        """The leaf of rows (n, k) in f32, given U of the inputs in the order (k,)."""
        grid, k = rounding_codec(self.codec), matrix.shape[-1]
        scale, zero = self.codec.spans(matrix, stats)
        if factor is None:
            return grid.round(matrix, scale, zero, fold, dtype)
        leaf = grid.round(matrix, scale, zero, fold, dtype)
        # scales (groups, n) and zeros (n, groups) with the values that the leaf decodes
        leaf_scale, low = leaf.scales(), getattr(leaf, "low", None)
        leaf_zero = zero if low is None else low.mT.astype(jnp.float32)
        group = order // min(grid.group or k, k)  # the group of each input, in the order of `order`

        def settle(rows, i, j, state):
            g = group[jnp.minimum(j, k - 1)]
            zeros = None if leaf_zero is None else leaf_zero[:, g]
            return grid.snap(rows[i], leaf_scale[g], zeros), state

        solved = sweep(matrix.T[order], factor, settle)[0][jnp.argsort(order)].T
        if self.turns:
            leaf_scale = leaf_scale.swapaxes(0, 1)
            solved, new = self.descend(matrix, solved, leaf_scale, leaf_zero, gram, order)
            scale = new.astype(scale.dtype) if _refits_scales(grid) else scale
        return grid.round(solved, scale, zero, fold, dtype)

    def descend(
        self,
        matrix: Array,
        solved: Array,
        scale: Array,
        zero: Array | None,
        gram: Array,
        order: Array,
    ) -> tuple[Array, Array]:
        """(ŵ (n, k), scales (n, groups)) after the turns, both with the values that are decoded.

        `solved` is ŵ before them, `scale` and `zero` (n, groups) those of its groups.
        """
        grid, k = rounding_codec(self.codec), matrix.shape[-1]
        group = min(grid.group or k, k)
        mean = jnp.trace(gram) / k
        damped = jnp.where(mean > 0, gram + self.damping * mean * jnp.eye(k), jnp.eye(k))

        def turn(_, best):
            rounded, scale, loss = best
            if _refits_scales(grid):
                units = rounded / repeat_groups(divisor(scale), group, k)
                scale = refit_scales(matrix, units, scale, damped, group)
                scale = finite_scale(scale).astype(jnp.float32)
                rounded = units * repeat_groups(scale, group, k)

            def snap(values, j):
                g = j // group
                return grid.snap(values, scale[:, g], None if zero is None else zero[:, g])

            rounded = round_again(matrix, rounded, damped, order, snap)
            new_loss = row_losses(rounded - matrix, damped)
            better = (new_loss < loss)[:, None]
            scale = jnp.where(better, scale, best[1]) if _refits_scales(grid) else scale
            return jnp.where(better, rounded, best[0]), scale, jnp.minimum(new_loss, loss)

        first = (solved, scale, row_losses(solved - matrix, damped))
        return lax.fori_loop(0, self.turns, turn, first)[:2]


def _refits_scales(grid: Any) -> bool:
    """Whether ŵ is an f16 scale times a value that depends on the code alone."""
    return isinstance(grid, Int | Codebook)
