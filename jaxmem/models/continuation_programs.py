"""ContinuationPrograms: what scores rows of texts, and trees of texts, compiled."""

import collections
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ..kv_cache.packed_texts import Packed
from .model import Model


class ContinuationPrograms:
    """The compiled functions of a model; `compiled` has the shapes that there are programs of."""

    def __init__(self, apply: Callable):
        self.whole = jax.jit(lambda params, ids, targets: _score(apply(params, ids), targets))

        def tree(params, ids, depths, ends, after, targets):
            logits = apply(params, ids, None, Packed(None, depths, ends))
            return _steps(logits, after, targets)

        self.tree = jax.jit(tree)
        self.compiled: dict = collections.defaultdict(set)  # by the kind of weights


def programs_of(model: Model) -> ContinuationPrograms:
    """The programs of a model, which models of one configuration share."""
    return ContinuationPrograms(model.apply) if type(model) is not Model else _of(model.config)


@functools.lru_cache(maxsize=8)
def _of(config: Any) -> ContinuationPrograms:
    return ContinuationPrograms(Model(config, {}, None, "").apply)


def _steps(logits: Array, after: Array, targets: Array) -> tuple[Array, Array]:
    """(log-probability of each target (B, S) after a token, whether it is the most probable one).

    `logits` are (B, T, vocab), `after` (B, S) are tokens of the row; a target of -1 is none.
    """
    logits, at = logits.astype(jnp.float32), jnp.maximum(targets, 0)
    of_token = lambda values: jnp.take_along_axis(values, after, axis=1)
    rows = jnp.arange(len(logits), dtype=after.dtype)[:, None]
    logprobs = logits[rows, after, at] - of_token(jax.nn.logsumexp(logits, axis=-1))
    greedy = of_token(logits.argmax(-1).astype(targets.dtype)) == targets
    return jnp.where(targets < 0, 0, logprobs), greedy | (targets < 0)


def _score(logits: Array, targets: Array) -> tuple[Array, Array]:
    """(log-probabilities (B,) summed over targets (B, T), whether all are most probable (B,)).

    The logits (B, T, vocab) of a token are of the target at its place.
    """
    places = jnp.broadcast_to(jnp.arange(targets.shape[1], dtype=targets.dtype), targets.shape)
    logprobs, greedy = _steps(logits, places, targets)
    return logprobs.sum(-1), greedy.all(-1)
