"""distillation: (1 − α) · CE(labels, s) + α · T² · KL(softmax(t/T) ‖ softmax(s/T))."""

import jax
import jax.numpy as jnp
from jax import Array


def distillation(
    student: Array, teacher: Array, labels: Array, *, alpha: float = 0.5, temperature: float = 1.0
) -> Array:
    """The mean loss of a student that learns from labels and from a teacher's logits, in f32.

    Shapes: student and teacher (..., classes), labels (...) integers. The gradient reaches the
    student through both terms and does not reach the teacher; T² keeps the second's size as the
    temperature grows. Hinton et al., 2015.

    Raises:
        ValueError: alpha outside 0 to 1, or a temperature that is not positive.

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
    student, teacher = student.astype(jnp.float32), jax.lax.stop_gradient(teacher)
    soft = lambda x: jax.nn.log_softmax(x.astype(jnp.float32) / temperature)
    target, guess = soft(teacher), soft(student)
    divergence = (jnp.exp(target) * (target - guess)).sum(-1).mean()
    own = jnp.take_along_axis(jax.nn.log_softmax(student), labels[..., None], -1)
    return -(1 - alpha) * own.mean() + alpha * temperature**2 * divergence
