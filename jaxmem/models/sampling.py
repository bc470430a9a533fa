"""The next token, sampled from logits."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax import Array, lax


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How `generate` chooses a token; its docstring says what each option does.

    Raises:
        ValueError: an option is out of range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None

    def __post_init__(self):
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature is {self.temperature}, expected at least 0, and finite")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}, expected at least 1")
        for name, share in (("top_p", self.top_p), ("min_p", self.min_p)):
            if share is not None and not 0 < share <= 1:
                raise ValueError(f"{name} is {share}, expected more than 0 and at most 1")


@functools.partial(jax.jit, static_argnames="sampling")
def pick(logits: Array, key: Array, step: Array, sampling: Sampling) -> Array:
    """The next token of each row, (batch,)."""
    if sampling.temperature == 0.0:
        return jnp.argmax(logits, axis=-1)
    logits = logits.astype(jnp.float32) / sampling.temperature
    if sampling.top_k is not None:
        least = lax.top_k(logits, min(sampling.top_k, logits.shape[-1]))[0][:, -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if sampling.top_p is not None:
        ranked = jnp.sort(logits, axis=-1, descending=True)
        share = jax.nn.softmax(ranked, axis=-1)
        among = jnp.cumsum(share, axis=-1) - share < sampling.top_p
        least = jnp.where(among, ranked, jnp.inf).min(axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if sampling.min_p is not None:
        least = logits.max(axis=-1, keepdims=True) + math.log(sampling.min_p)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return jax.random.categorical(jax.random.fold_in(key, step), logits)
