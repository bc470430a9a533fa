"""HQQ: for each group the range of least Σ |w − ŵ|^p, p < 1, without calibration data.

The half-quadratic method alternates two steps: e = shrink(w − ŵ) holds the large errors, and the
range is fitted to w − e by least squares (Badri and Shaji, 2023).
"""

import dataclasses

import jax.numpy as jnp
from jax import Array, lax

from ..calibration.statistics import Moments
from ..codecs.scaled import grouped
from .solver import Solver

P, BETA, GROWTH, STEPS = 0.7, 10.0, 1.01, 20  # as in the paper; errors are in steps of the grid


@dataclasses.dataclass(frozen=True)
class HQQ(Solver):
    """Accepts large errors in a few weights so that most errors are small (a norm with p = 0.7).

    Needs no calibration data. The paper changes only the zero point, a float; here zero points are
    integers, and both zero and scale change. The best of 20 ranges is kept. The first of them is
    the codec's own, so the result is never worse in that norm.

    Raises:
        TypeError: `codec` does not round to scales.

    Example:
        >>> import jax, jaxmem as jm
        >>> w = jax.random.normal(jax.random.key(0), (64, 64))
        >>> error = lambda codec: float((abs(codec.encode(w).decode() - w) ** 0.7).sum())
        >>> error(HQQ(jm.Int(3))) < 0.9 * error(jm.Int(3))
        True
    """

    def spans(self, matrix: Array, stats: Moments | None) -> tuple[Array, Array | None]:
        """The scales and zeros (n, groups) of a matrix (n, k) in f32."""
        if matrix.size == 0:
            return self.codec.spans(matrix)
        groups = grouped(matrix, self.codec.group)
        inside = grouped(jnp.ones((1, matrix.shape[1])), self.codec.group)  # 0 where padded
        count = inside.sum(-1)

        def step(i, state):
            least, best, (low, high) = state
            scale, zero = self.codec.range(low, high)
            shift = None if zero is None else zero[..., None]
            near = self.codec.snap(groups, scale[..., None], shift)
            error = groups - near
            loss = (jnp.abs(error) ** P).sum(-1)
            better = loss < least
            best = jnp.where(better, low, best[0]), jnp.where(better, high, best[1])
            # one step of the grid: a uniform error has a root mean square of step / √12
            unit = jnp.sqrt(12 * jnp.square(error).sum(-1) / count)[..., None]
            target = groups - unit * shrink(error / jnp.where(unit > 0, unit, 1.0), i)
            slope, offset = fit(inside * near, inside * target, count, shifted=zero is not None)
            ends = jnp.minimum(slope * low + offset, 0.0), jnp.maximum(slope * high + offset, 0.0)
            return jnp.where(better, loss, least), best, ends

        ends = groups.min(-1, initial=0.0), groups.max(-1, initial=0.0)
        first = (jnp.full(ends[0].shape, jnp.inf), ends, ends)
        return self.codec.range(*lax.fori_loop(0, STEPS, step, first)[1])


def shrink(error: Array, step: Array | int) -> Array:
    """The accepted part of each error: sign(e) · max(|e| − |e|^(p−1) / β, 0).

    β = BETA · GROWTH^step.

    Example:
        >>> import jax.numpy as jnp
        >>> shrink(jnp.array([0.1, -2.0]), 0).round(2).tolist()
        [0.0, -1.9199999570846558]
    """
    size = jnp.abs(error)
    threshold = jnp.where(size > 0, size, 1.0) ** (P - 1) / (BETA * GROWTH**step)
    return jnp.sign(error) * jnp.maximum(size - threshold, 0.0)


def fit(x: Array, y: Array, count: Array, *, shifted: bool) -> tuple[Array, Array]:
    """(slope, offset) of the least squares line y ≈ slope · x + offset along the last axis.

    `count` is the number of points, without the zeros that pad x and y. The offset is 0 unless
    `shifted`.
    """
    mean = lambda a: a.sum(-1) / count
    mx, my = (mean(x), mean(y)) if shifted else (0.0, 0.0)
    spread = mean(x * x) - mx * mx
    slope = jnp.where(spread > 0, (mean(x * y) - mx * my) / jnp.where(spread > 0, spread, 1.0), 1.0)
    return slope, (my - slope * mx if shifted else jnp.zeros(slope.shape))
