"""distillation: (1 − α) · CE(labels, s) + α · T² · KL(softmax(t/T) ‖ softmax(s/T))."""

import jax
import jax.numpy as jnp
from jax import Array

from ..core.arguments import takes
from .output_losses import divergence


@takes()
def distillation(
    student: Array, teacher: Array, labels: Array, *, alpha: float = 0.5, temperature: float = 1.0
) -> Array:
    """The mean loss, in f32, of a student that learns from labels and from a teacher's logits.

    Shapes: student and teacher (..., classes), labels (...) integers. The gradient reaches the
    student through both terms and never reaches the teacher. The factor T² keeps the size of the
    second term's gradient as the temperature T grows. Hinton et al., 2015.

    Raises:
        ValueError: `alpha` is outside 0 to 1, or `temperature` is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> s, t = jnp.array([[0.0, 0.0]]), jnp.array([[4.0, 0.0]])
        >>> [round(float(distillation(s, t, jnp.array([0]), alpha=a)), 3) for a in (0.0, 1.0)]
        [0.693, 0.603]
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}, expected 0 to 1")
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}, expected more than 0")
    student = student.astype(jnp.float32)
    teacher = jax.lax.stop_gradient(teacher).astype(jnp.float32)
    soft_loss = divergence(teacher / temperature, student / temperature)
    log_probability = jnp.take_along_axis(jax.nn.log_softmax(student), labels[..., None], -1)
    return -(1 - alpha) * log_probability.mean() + alpha * temperature**2 * soft_loss
