"""ContinuationPrograms: what reads contexts and scores continuations, compiled."""

import collections
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from .model import Model
from .next_token_logits import rows_of


class ContinuationPrograms:
    """The compiled functions of a model; `compiled` has the shapes that there are programs of.

    Continuations of several rows are read at once, or `by_row` one after the other: products of
    experts have no batches of batches, and a module of the user may have none.
    """

    def __init__(self, apply: Callable, *, by_row: bool):
        self.read = jax.jit(lambda params, ids, cache: apply(params, ids, cache, 0)[1])
        self.whole = jax.jit(lambda params, ids, targets: _score(apply(params, ids), targets))

        def after(params, ids, targets, cache, which, starts):
            def logits_of(ids, cache, start):
                cache = jax.tree.map(lambda x: x[:, None], cache)
                return apply(params, ids[None], cache, start)[0][0]

            if by_row:
                own = lambda row: jax.tree.map(lambda x: x[:, row], cache)
                one = lambda x: logits_of(x[0], own(x[1]), x[2])
                return _score(jax.lax.map(one, (ids, which, starts)), targets)
            logits = jax.vmap(logits_of, (0, 1, 0))(ids, rows_of(cache, which), starts)
            return _score(logits, targets)

        self.after = jax.jit(after)
        self.compiled: dict = collections.defaultdict(set)  # by the kind of weights


def programs_of(model: Model) -> ContinuationPrograms:
    """The programs of a model, which models of one configuration share."""
    if type(model) is not Model:
        return ContinuationPrograms(model.apply, by_row=True)
    return _of_config(model.config)


@functools.lru_cache(maxsize=8)
def _of_config(config: Any) -> ContinuationPrograms:
    by_row = getattr(config, "mixture", None) is not None
    return ContinuationPrograms(Model(config, {}, None, "").apply, by_row=by_row)


def _score(logits: Array, targets: Array) -> tuple[Array, Array]:
    """(log-probabilities (B,) summed over targets (B, T), whether all are most probable (B,)).

    `logits` are (B, T, vocab); a target of -1 is none.
    """
    logits, real = logits.astype(jnp.float32), targets >= 0
    at = jnp.maximum(targets, 0)[..., None]
    chosen = jnp.take_along_axis(logits, at, axis=-1)[..., 0]
    logprobs = jnp.where(real, chosen - jax.nn.logsumexp(logits, axis=-1), 0)
    greedy = jnp.where(real, logits.argmax(-1) == targets, True)
    return logprobs.sum(-1), greedy.all(-1)
