"""cosine_adam: Adam whose learning rate rises over a tenth of the steps and falls as a cosine."""

import functools

import optax

from ..optimizers.float32_state import in_float32


@functools.cache
def cosine_adam(learning_rate: float, steps: int) -> optax.GradientTransformation:
    """Adam in f32: from a tenth of `learning_rate` up to it, then as half a cosine to zero.

    Equal arguments give the same object, so that a compiled step is found again.

    Example:
        >>> import jax.numpy as jnp
        >>> optimizer, params = cosine_adam(1.0, 100), jnp.zeros(2)
        >>> updates, _ = optimizer.update(jnp.array([1.0, -2.0]), optimizer.init(params))
        >>> updates.round(3).tolist()
        [-0.10000000149011612, 0.10000000149011612]
    """
    schedule = optax.warmup_cosine_decay_schedule(
        0.1 * learning_rate, learning_rate, max(1, steps // 10), max(2, steps)
    )
    return in_float32(optax.adam(schedule))
