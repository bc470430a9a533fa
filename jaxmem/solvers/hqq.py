"""HQQ: for each group the range whose rounding loses least Σ |w − ŵ|^p with p < 1, data-free.

Half-quadratic: e = shrink(w − ŵ) takes the large errors, then the range that fits w − e by least
squares; in turns (Badri and Shaji, 2023).
"""

import dataclasses

import jax.numpy as jnp
from jax import Array, lax

from ..calibration.statistics import Moments
from ..codecs.scaled import grouped
from .solver import Solver

P, BETA, GROWTH, STEPS = 0.7, 10.0, 1.01, 20  # of the paper; errors count in steps of the grid


@dataclasses.dataclass(frozen=True)
class HQQ(Solver):
    """Lets a few weights go wrong, as a norm with p = 0.7 does, so that most are near.

    Needs no data. The paper moves the zero point alone and keeps it as a float; here zero points
    are integers, and zero and scale move. Keeps the best of 20 steps, the first being the codec's
    own range: never worse than it in that norm.

    Raises:
        TypeError: a codec that does not round to scales.

    Example:
        >>> import jax, jaxmem as jm
        >>> w = jax.random.normal(jax.random.key(0), (64, 64))
        >>> error = lambda codec: float((abs(codec.encode(w).decode() - w) ** 0.7).sum())
        >>> error(HQQ(jm.Int(3))) < 0.9 * error(jm.Int(3))
        True
    """

    def spans(self, matrix: Array, stats: Moments | None) -> tuple[Array, Array | None]:
        """The scale and zero of each group, (n, groups)."""
        if matrix.size == 0:
            return self.codec.spans(matrix)
        groups = grouped(matrix, self.codec.group)
        inside = grouped(jnp.ones((1, matrix.shape[1])), self.codec.group)  # (1, groups, group)
        count = inside.sum(-1)

        def step(i, state):
            least, kept, (low, high) = state
            scale, zero = self.codec.range(low, high)
            shift = None if zero is None else zero[..., None]
            near = self.codec.snap(groups, scale[..., None], shift)
            error = groups - near
            loss = (jnp.abs(error) ** P).sum(-1)
            better = loss < least
            kept = jnp.where(better, low, kept[0]), jnp.where(better, high, kept[1])
            # a uniform error's root mean square is a step / √12
            unit = jnp.sqrt(12 * jnp.square(error).sum(-1) / count)[..., None]
            target = groups - unit * shrink(error / jnp.where(unit > 0, unit, 1.0), i)
            slope, offset = fit(inside * near, inside * target, count, shifted=zero is not None)
            ends = jnp.minimum(slope * low + offset, 0.0), jnp.maximum(slope * high + offset, 0.0)
            return jnp.where(better, loss, least), kept, ends

        ends = groups.min(-1, initial=0.0), groups.max(-1, initial=0.0)
        first = (jnp.full(ends[0].shape, jnp.inf), ends, ends)
        return self.codec.range(*lax.fori_loop(0, STEPS, step, first)[1])


def shrink(error: Array, step: Array | int) -> Array:
    """The part of each error that is let go: sign(e) · max(|e| − |e|^(p−1) / β, 0).

    Example:
        >>> import jax.numpy as jnp
        >>> shrink(jnp.array([0.1, -2.0]), 0).round(2).tolist()
        [0.0, -1.9199999570846558]
    """
    size = jnp.abs(error)
    threshold = jnp.where(size > 0, size, 1.0) ** (P - 1) / (BETA * GROWTH**step)
    return jnp.sign(error) * jnp.maximum(size - threshold, 0.0)


def fit(x: Array, y: Array, count: Array, *, shifted: bool) -> tuple[Array, Array]:
    """Slope and offset of the least squares line y ≈ slope · x + offset over the last axis."""
    mean = lambda a: a.sum(-1) / count
    mx, my = (mean(x), mean(y)) if shifted else (0.0, 0.0)
    spread = mean(x * x) - mx * mx
    slope = jnp.where(spread > 0, (mean(x * y) - mx * my) / jnp.where(spread > 0, spread, 1.0), 1.0)
    return slope, (my - slope * mx if shifted else jnp.zeros(slope.shape))
