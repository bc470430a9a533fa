"""Tokens generated several at a time by one program; generation.py runs it, and has the text."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from .output_tokens import banned_tokens, without
from .sampling import Sampling, pick

MOST_STEPS = 32  # tokens of a run of the program

# forward(config, inputs, ids (batch, T), cache, position): (logits (batch, T, vocab), cache); with
# another argument, `last`, the logits (batch, 1, vocab) after ids[:, last].
Forward = Callable[..., tuple[Array, Any]]


@functools.partial(
    jax.jit, static_argnames=("config", "forward", "sampling"), donate_argnames="cache"
)
def decode(
    config: Any,
    forward: Forward,
    inputs: Any,
    cache: Any,
    state: "State",
    steps: Array,
    key: Array,
    *,
    sampling: Sampling,
) -> tuple[Array, "State", Any]:
    """Up to `steps` more tokens of each row, fewer if all rows end before.

    Weights are arguments and `steps` is traced, so that one program serves every model of a
    configuration and every number of steps.

    Args:
        config: the configuration of the model; its end tokens end a row.
        forward: computes logits, with `inputs`, from the tokens and the cache.
        inputs: the params, and what else `forward` reads.
        cache: the keys and values so far; its memory is used again.
        state: where each row is.
        steps: the most tokens, at most `MOST_STEPS`.
        key: the random key of the whole text.
        sampling: how a token is chosen.

    Returns:
        The tokens (batch, MOST_STEPS), of which the first `state.step - before` count; the new
        state; the new cache.
    """
    banned = banned_tokens(config, 1)
    begin, out = state.step, jnp.zeros((len(state.token), MOST_STEPS), jnp.int32)

    def goes_on(carry: tuple) -> Array:
        state, *_ = carry
        return (state.step - begin < steps) & ~state.ended.all()

    def one_token(carry: tuple) -> tuple:
        state, cache, out = carry
        logits, cache = forward(config, inputs, state.token[:, None], cache, state.position)
        token = pick(without(logits[:, -1], banned), key, state.step, sampling)
        token = jnp.where(state.ended, state.token, token).astype(jnp.int32)
        out = out.at[:, state.step - begin].set(token)
        return state.after(token, jnp.asarray(config.eos, jnp.int32)), cache, out

    state, cache, out = lax.while_loop(goes_on, one_token, (state, cache, out))
    return out, state, cache


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """Where rows of text are: the last `token` (batch,) of each, which the model has not read.

    `position` is where the cache takes it, `step` the number of tokens that were generated, and
    `ended` (batch,) says which rows are at their end.
    """

    token: Array
    position: Array
    step: Array
    ended: Array

    def after(self, token: Array, eos: Array) -> "State":
        """The state when each row has one more token; `eos` (n,) are the end tokens."""
        ended = self.ended | (token[:, None] == eos[None]).any(axis=1)
        return State(token, self.position + 1, self.step + 1, ended)
