"""cross_entropy: −log softmax(logits)[target] of each token, smoothed or not, with a z-loss."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from ..core.arguments import takes


@takes()
def cross_entropy(*, smoothing: float = 0.0, z: float = 0.0) -> Callable[[Array, Array], Array]:
    """A function (logits (..., V), targets (...)) -> losses (...), in nats, in f32.

    The loss is −(1 − s) · log p[target] − s · mean log p + z · log² Σ exp(logits). Smoothing s is
    that of Szegedy et al., 2016; the last term keeps logits near 0 (PaLM, Chowdhery et al., 2022).

    Raises:
        ValueError: `smoothing` is outside 0 to 1, or `z` is negative.

    Example:
        >>> loss = cross_entropy(smoothing=0.1, z=1e-4)
        >>> float(loss(jnp.zeros((1, 16)), jnp.zeros(1, jnp.int32))[0]).__round__(4)
        2.7734
    """
    if not 0 <= smoothing <= 1:
        raise ValueError(f"smoothing is {smoothing}, expected 0 to 1")
    if not z >= 0:
        raise ValueError(f"z is {z}, expected at least 0")

    def loss(logits, targets):
        logits = logits.astype(jnp.float32)
        total = jax.nn.logsumexp(logits, axis=-1)
        target = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
        if smoothing:
            target = (1 - smoothing) * target + smoothing * logits.mean(-1)
        return total - target + (z * total**2 if z else 0.0)

    return loss
