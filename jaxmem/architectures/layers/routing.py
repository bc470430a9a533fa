"""Which experts a token goes to, and with which weights: what `Experts` of experts.py asks."""

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..configs.mixture import Mixture


def route(logits: Array, mixture: Mixture, correction: Array | None = None) -> tuple[Array, Array]:
    """(weights (N, per_token) f32, experts (N, per_token) int32) of N tokens.

    Args:
        logits: of the router, (N, experts) f32.
        mixture: how experts are chosen.
        correction: (experts,), added to the scores for the choice only.

    Example:
        >>> logits = jnp.log(jnp.array([[1.0, 4.0, 2.0, 3.0]]))
        >>> weights, experts = route(logits, Mixture(experts=4, per_token=2, ffn=8))
        >>> weights.round(1).tolist(), experts.tolist()
        ([[0.4..., 0.3...]], [[1, 3]])
    """
    if mixture.scores == "sparsemixer":
        weights, experts = _sparsemixer(logits, mixture.jitter)
    else:
        of_logits = jax.nn.softmax if mixture.scores == "softmax" else jax.nn.sigmoid
        scores = of_logits(logits.astype(jnp.float32))
        ranks = scores if correction is None else scores + correction.astype(jnp.float32)[None]
        ranks = _within_groups(ranks, mixture)
        _, experts = lax.top_k(ranks, mixture.per_token)
        weights = jnp.take_along_axis(scores, experts, axis=1)
    if mixture.renormalized:
        weights = weights / jnp.maximum(weights.sum(-1, keepdims=True), 1e-20)
    return weights * mixture.scale, experts.astype(jnp.int32)


def _within_groups(ranks: Array, mixture: Mixture) -> Array:
    """Ranks (N, experts), -inf outside the best groups of each token (DeepSeek-V2, 2024)."""
    if mixture.groups == mixture.groups_per_token:
        return ranks
    groups = ranks.reshape(-1, mixture.groups, mixture.experts // mixture.groups)
    of_group = groups.max(-1) if mixture.group_score == "max" else lax.top_k(groups, 2)[0].sum(-1)
    _, best = lax.top_k(of_group, mixture.groups_per_token)  # (N, groups_per_token)
    is_best = jax.nn.one_hot(best, mixture.groups, dtype=jnp.int32).sum(1) > 0
    return jnp.where(is_best[..., None], groups, -jnp.inf).reshape(ranks.shape)


def _sparsemixer(logits: Array, jitter: float) -> tuple[Array, Array]:
    """Two experts, each the best of those left, with its softmax among logits that are close.

    This is the choice of Liu et al., 2023, without the noise of training.
    """
    left, weights, experts = logits, [], []
    for _ in range(2):
        best = left.max(-1, keepdims=True)
        expert = left.argmax(-1)[:, None]
        distance = (best - logits) / jnp.maximum(jnp.abs(logits), best)
        close = jnp.where(distance > 2 * jitter, -jnp.inf, left)
        weights.append(jnp.take_along_axis(jax.nn.softmax(close, -1), expert, axis=1))
        experts.append(expert)
        chosen = jax.nn.one_hot(expert[:, 0], logits.shape[1], dtype=jnp.bool_)
        left = jnp.where(chosen, -jnp.inf, left)
    return jnp.concatenate(weights, axis=1), jnp.concatenate(experts, axis=1)
