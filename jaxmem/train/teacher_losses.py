"""Losses of each token from a student's and a teacher's logits: KL of both directions, JSD."""

import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

from ..core.arguments import shown, takes
from .output_losses import kl_divergence
from .token_losses import cross_entropy

Divergence = Literal["forward", "reverse", "jsd"]


@takes()
def teacher_divergence(
    *, temperature: float = 1.0, kind: Divergence = "forward", beta: float = 0.5
) -> Callable[[Array, Array], Array]:
    """A function (student's logits, teacher's logits (..., V)) -> T² · divergence (...), in f32.

    Both logits are divided by the temperature T first (Hinton et al., 2015). With P the teacher and
    Q the student, "forward" is KL(P ‖ Q), which covers all that the teacher would say, and
    "reverse" KL(Q ‖ P), which keeps to what it would say most (Gu et al., 2024: MiniLLM). "jsd" is
    β · KL(P ‖ M) + (1 − β) · KL(Q ‖ M) of the mixture M = β · P + (1 − β) · Q (Agarwal et al.,
    2024: GKD). No gradient reaches the teacher. With `chunked`, neither model's logits are in
    memory as a whole.

    Raises:
        ValueError: `temperature` is not positive, there is no such `kind`, or `beta` is not between
            0 and 1; when it is called, student and teacher have other vocabularies.

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
    if kind not in ("forward", "reverse", "jsd"):
        raise ValueError(f"kind is {shown(kind)}, expected 'forward', 'reverse' or 'jsd'")
    if not 0 < beta < 1:
        raise ValueError(f"beta is {beta}, expected more than 0 and less than 1")

    def loss(student, teacher):
        check_vocabularies(student, teacher)
        teacher = jax.lax.stop_gradient(teacher).astype(jnp.float32) / temperature
        student = student.astype(jnp.float32) / temperature
        if kind == "forward":
            value = kl_divergence(teacher, student)
        elif kind == "reverse":
            value = kl_divergence(student, teacher)
        else:
            log_p, log_q = jax.nn.log_softmax(teacher), jax.nn.log_softmax(student)
            mixed = log_mixture(log_p, log_q, beta)
            value = beta * kl_divergence(log_p, mixed) + (1 - beta) * kl_divergence(log_q, mixed)
        return temperature**2 * value

    return loss


@takes()
def distilled_cross_entropy(
    *,
    alpha: float = 0.5,
    temperature: float = 1.0,
    kind: Divergence = "forward",
    beta: float = 0.5,
    smoothing: float = 0.0,
) -> Callable[[Array, Array, Array], Array]:
    """A function (student's, teacher's logits (..., V), targets (...)) -> losses (...), in f32.

    The loss is (1 − α) · cross entropy of the targets + α · `teacher_divergence`: `jm.distillation`
    of each token, for `chunked` (Hinton et al., 2015).

    Raises:
        ValueError: `alpha` is outside 0 to 1; or as `cross_entropy` and `teacher_divergence`.

    Example:
        >>> loss = distilled_cross_entropy(alpha=0.5)
        >>> logits = jnp.zeros((1, 16))
        >>> float(loss(logits, logits, jnp.zeros(1, jnp.int32))[0]).__round__(4)
        1.3863
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}, expected 0 to 1")
    soft = teacher_divergence(temperature=temperature, kind=kind, beta=beta)
    hard = cross_entropy(smoothing=smoothing)

    def loss(student, teacher, targets):
        return (1 - alpha) * hard(student, targets) + alpha * soft(student, teacher)

    return loss


def log_mixture(log_p: Array, log_q: Array, beta: float) -> Array:
    """log(β · p + (1 − β) · q); where both are 0 it is -inf, and has no gradient."""
    never = jnp.isneginf(log_p) & jnp.isneginf(log_q)
    log_p, log_q = (jnp.where(never, 0.0, x) for x in (log_p, log_q))
    mixed = jnp.logaddexp(log_p + math.log(beta), log_q + math.log1p(-beta))
    return jnp.where(never, -jnp.inf, mixed)


def check_vocabularies(student: Array, teacher: Array) -> None:
    """Raises ValueError if the logits are not of as many classes."""
    ours, theirs = student.shape[-1], teacher.shape[-1]
    if ours != theirs:
        raise ValueError(
            f"the student has logits of {ours} classes and the teacher of {theirs}, expected one "
            f"vocabulary; if only padding differs, cut it: finish=lambda y: y[..., :n]"
        )
