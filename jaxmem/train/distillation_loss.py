"""distillation: (1 − α) · CE(labels, s) + α · T² · divergence of softmax(t/T) and softmax(s/T)."""

import jax.numpy as jnp
from jax import Array

from ..core.arguments import takes
from .teacher_losses import Divergence, distilled_cross_entropy


@takes()
def distillation(
    student: Array,
    teacher: Array,
    labels: Array,
    *,
    alpha: float = 0.5,
    temperature: float = 1.0,
    kind: Divergence = "forward",
    beta: float = 0.5,
) -> Array:
    """The mean loss, in f32, of a student that learns from labels and from a teacher's logits.

    The gradient reaches the student through both terms and never reaches the teacher. The factor T²
    keeps the size of the second term's gradient as the temperature T grows. Hinton et al., 2015.
    For a large vocabulary, `jm.train.distilled_cross_entropy` with `jm.train.chunked` is the same
    of hidden states, without logits of all tokens.

    Args:
        student: logits (..., classes).
        teacher: logits (..., classes).
        labels: integers (...).
        alpha: the share of the teacher's term, 0 to 1.
        temperature: T, what both logits are divided by in the teacher's term.
        kind: "forward", "reverse" or "jsd", see `jm.train.teacher_divergence`.
        beta: the share of the teacher in the mixture of "jsd".

    Raises:
        ValueError: `alpha` is outside 0 to 1, `temperature` is not positive, `kind` or `beta` is
            none of the above, or student and teacher have not as many classes.

    Example:
        >>> import jax.numpy as jnp
        >>> s, t = jnp.array([[0.0, 0.0]]), jnp.array([[4.0, 0.0]])
        >>> [round(float(distillation(s, t, jnp.array([0]), alpha=a)), 3) for a in (0.0, 1.0)]
        [0.693, 0.603]
    """
    loss = distilled_cross_entropy(alpha=alpha, temperature=temperature, kind=kind, beta=beta)
    return loss(student.astype(jnp.float32), teacher, labels).mean()
