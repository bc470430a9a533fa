"""Losses between a target and an output: squared error, relative error, KL divergence."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ..core.arguments import Kind, takes

_LOGITS = Kind("logits (..., classes)", lambda x: hasattr(x, "dtype") and len(x.shape) > 0)
_OUTPUTS = Kind(
    "an array, or a tree of arrays, such as a list of them",
    lambda x: (
        bool(jax.tree.leaves(x)) and all(hasattr(leaf, "dtype") for leaf in jax.tree.leaves(x))
    ),
)


@takes(target=_OUTPUTS, found=_OUTPUTS)
def squared(target: Any, found: Any) -> Array:
    """The mean squared error over all numbers of all outputs, in f32.

    `target` and `found` are arrays or trees of arrays of the same shapes.

    Example:
        >>> import jax.numpy as jnp
        >>> float(squared([jnp.ones(3)], [jnp.zeros(3)]))
        1.0
    """
    pairs = list(zip(jax.tree.leaves(target), jax.tree.leaves(found)))
    wide = lambda a: a.astype(jnp.float32)
    total = sum(jnp.square(wide(a) - wide(b)).sum() for a, b in pairs)
    return total / max(1, sum(a.size for a, _ in pairs))


@takes(target=_OUTPUTS, found=_OUTPUTS)
def relative(target: Any, found: Any) -> Array:
    """The mean of ‖target − found‖² / ‖target‖² over rows (..., features), in f32.

    `target` and `found` are arrays or trees of arrays of the same shapes.

    Each row is weighted by its own size, because the hidden states of a few tokens in a language
    model are far larger than the others, and the norm of the next layer removes that difference.

    Example:
        >>> import jax.numpy as jnp
        >>> float(relative(jnp.array([[3.0, 4.0], [300.0, 400.0]]), jnp.zeros((2, 2))))
        1.0
    """

    def rows(a, b):
        a, b = jnp.atleast_1d(a.astype(jnp.float32), b.astype(jnp.float32))
        size = jnp.maximum(jnp.square(a).sum(-1), jnp.finfo(jnp.float32).tiny)
        return (jnp.square(a - b).sum(-1) / size).ravel()

    pairs = zip(jax.tree.leaves(target), jax.tree.leaves(found))
    return jnp.concatenate([rows(*pair) for pair in pairs]).mean()


@takes(target=_LOGITS, found=_LOGITS)
def divergence(target: Array, found: Array) -> Array:
    """The mean KL(softmax(target) ‖ softmax(found)) of logits (..., classes), in nats, in f32.

    Example:
        >>> import jax.numpy as jnp
        >>> float(divergence(jnp.array([[0.0, 2.0]]), jnp.array([[1.0, 3.0]])))
        0.0
    """
    return kl_divergence(target, found).mean()


@takes(target=_LOGITS, found=_LOGITS)
def kl_divergence(target: Array, found: Array) -> Array:
    """KL(softmax(target) ‖ softmax(found)) of each row of logits (..., classes), (...) nats in f32.

    A class whose target logit is -inf has probability 0, and adds nothing.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(kl_divergence(jnp.array([0.0, -jnp.inf]), jnp.zeros(2))), 4)
        0.6931
    """
    log_p, log_q = (jax.nn.log_softmax(x.astype(jnp.float32)) for x in (target, found))
    p = jnp.exp(log_p)
    # The difference is replaced before the product, so that -inf of both has no gradient of NaN.
    return (p * jnp.where(p > 0, log_p - log_q, 0)).sum(-1)
