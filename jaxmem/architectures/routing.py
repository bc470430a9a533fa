"""Which experts a token goes to, and with which weights: route(scores) -> (weights, experts)."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array, lax

from .config_sizes import check_types

_SCORES = ("softmax", "sigmoid", "sparsemixer")
_GROUP_SCORES = ("max", "top2")


@dataclasses.dataclass(frozen=True)
class Mixture:
    """The sizes of a mixture of experts, and how its router chooses (Shazeer et al., 2017).

    `dense` has a bool for each layer: where it is true, the layer has an MLP of `Config.ffn`
    neurons in place of experts. If `dense` is empty, every layer has experts.

    Example:
        >>> Mixture(experts=8, per_token=2, ffn=64, scores="sigmoid").groups
        1
        >>> Mixture(experts=8, per_token=9, ffn=64)
        Traceback (most recent call last):
        ValueError: per_token is 9, expected at most the 8 experts that can be chosen

    Raises:
        ValueError: sizes or options do not fit each other.
    """

    experts: int
    per_token: int
    ffn: int  # neurons of an expert
    scores: str = "softmax"  # of all experts' logits, or "sigmoid", or "sparsemixer"
    renormalized: bool = False  # the weights of the chosen experts sum to 1
    scale: float = 1.0  # factor of the weights
    correction: bool = False  # a number for each expert, added to the scores for the choice only
    jitter: float = 0.01  # of "sparsemixer": the width in which logits count as close
    groups: int = 1  # experts are chosen from `groups_per_token` of `groups` groups
    groups_per_token: int = 1
    group_score: str = "max"  # of a group: its highest score, or "top2", the sum of two
    scales_inputs: bool = False  # an expert's input is multiplied by its weight, not its output
    router_bias: bool = False
    expert_bias: bool = False
    shared_ffn: int = 0  # neurons of an expert that every token goes to
    shared_gate: bool = False  # its output times a sigmoid
    swiglu_limit: float = 0.0  # gate and up are cut to it, and (up + 1) takes the place of up
    swiglu_alpha: float = 1.702  # with `swiglu_limit`, the activation is x * sigmoid(alpha * x)
    dense: tuple[bool, ...] = ()

    def __post_init__(self):
        check_types(self)
        object.__setattr__(self, "dense", tuple(self.dense))
        for name in ("experts", "per_token", "ffn", "groups", "groups_per_token"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        for name, words in (("scores", _SCORES), ("group_score", _GROUP_SCORES)):
            if getattr(self, name) not in words:
                expected = " or ".join(words)
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected {expected}")
        if self.experts % self.groups or self.groups_per_token > self.groups:
            raise ValueError(
                f"{self.groups_per_token} of {self.groups} groups of {self.experts} experts, "
                "expected groups of equal size, and at most all of them"
            )
        of_group = self.experts // self.groups
        if self.per_token > of_group * self.groups_per_token:
            raise ValueError(
                f"per_token is {self.per_token}, expected at most the "
                f"{of_group * self.groups_per_token} experts that can be chosen"
            )
        if self.group_score == "top2" and self.groups > 1 and of_group < 2:
            raise ValueError(f"group_score is 'top2' with {of_group} expert in a group, expected 2")
        if self.scores == "sparsemixer" and (self.per_token != 2 or self.groups > 1):
            raise ValueError("sparsemixer chooses 2 experts of one group")
        if self.shared_gate and not self.shared_ffn:
            raise ValueError("shared_gate is set without shared_ffn")


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
