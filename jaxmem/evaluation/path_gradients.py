"""integrated_gradients: (x - b) · ∫₀¹ ∇f(b + α(x - b)) dα (Sundararajan et al., 2017).

The integral is Gauss and Legendre's sum. Completeness: the attributions add up to f(x) - f(b),
but for the error of the sum.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ..core.arguments import ARRAY, FUNCTION, takes


@takes(value=FUNCTION, x=ARRAY, baseline=ARRAY)
def integrated_gradients(
    value: Callable[[Array], Array], x: Array, baseline: Array, *, steps: int = 16
) -> Array:
    """What each number of `x` adds to `value(x)`, a float, against `value(baseline)`.

    `steps` gradients are computed one after the other, in the memory of one.

    Raises:
        ValueError: `baseline` has not the shape of `x`, or `steps` is below 1.

    Example:
        >>> x = jnp.array([1.0, 2.0])
        >>> worth = integrated_gradients(lambda x: x[0] * x[1] ** 2, x, jnp.zeros(2))
        >>> [f"{number:.3f}" for number in worth]
        ['1.333', '2.667']
    """
    x, baseline = jnp.asarray(x), jnp.asarray(baseline)
    if x.shape != baseline.shape:
        raise ValueError(f"baseline is {baseline.shape}, expected the shape {x.shape} of x")
    if steps < 1:
        raise ValueError(f"steps is {steps}, expected at least 1")
    nodes, weights = np.polynomial.legendre.leggauss(steps)  # from -1 to 1
    points = jnp.asarray((nodes + 1) / 2, x.dtype), jnp.asarray(weights / 2, x.dtype)

    def add(total, point):
        at, weight = point
        return total + weight * jax.grad(value)(baseline + at * (x - baseline)), None

    mean, _ = lax.scan(add, jnp.zeros_like(x), points)
    return (x - baseline) * mean
