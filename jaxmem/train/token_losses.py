"""Losses of each token from its logits: cross entropy, smoothed or not, and KL to a teacher."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from ..core.arguments import takes
from .output_losses import kl_divergence


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


@takes()
def teacher_divergence(*, temperature: float = 1.0) -> Callable[[Array, Array], Array]:
    """A function (student's logits, teacher's logits (..., V)) -> T² · KL(teacher ‖ student) (...).

    Both are divided by the temperature T first (Hinton et al., 2015). No gradient reaches the
    teacher. With `chunked`, neither model's logits are in memory as a whole.

    Raises:
        ValueError: `temperature` is not positive.

    Example:
        >>> import jaxmem as jm
        >>> student = jm.train.Logits(jnp.ones((1, 4, 8)), jnp.ones((8, 32)))
        >>> head = jm.Int(8).encode(jnp.ones((16, 32)))
        >>> teacher = jm.train.Logits(jnp.ones((1, 4, 16)), head)
        >>> jm.train.chunked(teacher_divergence(), (student, teacher), chunk=2).shape
        (1, 4)
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, expected more than 0")

    def loss(student, teacher):
        teacher = jax.lax.stop_gradient(teacher) / temperature
        return temperature**2 * kl_divergence(teacher, student / temperature)

    return loss
