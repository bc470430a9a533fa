"""The next token, sampled from logits: temperature, top-k, top-p."""

import functools
import math

import jax
import jax.numpy as jnp
from jax import Array, lax


@functools.partial(jax.jit, static_argnames=("temperature", "top_k", "top_p"))
def pick(
    logits: Array,
    key: Array,
    step: Array,
    *,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
) -> Array:
    """The next token of each row, (batch,)."""
    if temperature == 0.0:
        return jnp.argmax(logits, axis=-1)
    logits = logits.astype(jnp.float32) / temperature
    if top_k is not None:
        least = lax.top_k(logits, min(top_k, logits.shape[-1]))[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if top_p is not None:
        ranked = jnp.sort(logits, axis=-1, descending=True)
        share = jax.nn.softmax(ranked, axis=-1)
        among = jnp.cumsum(share, axis=-1) - share < top_p
        least = jnp.where(among, ranked, jnp.inf).min(axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return jax.random.categorical(jax.random.fold_in(key, step), logits)


def check_sampling(temperature: float, top_k: int | None, top_p: float | None, seed: int) -> None:
    """Refuses options that are out of range."""
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature is {temperature}, expected at least 0, and finite")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}, expected at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}, expected more than 0 and at most 1")
