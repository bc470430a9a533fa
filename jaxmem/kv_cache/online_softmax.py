"""m, Σ eˢ⁻ᵐ and Σ eˢ⁻ᵐ v, a block of keys at a time: a softmax that never has all scores at once.

The maximum and the sums are in f32 (Milakov and Gimelshein, 2018).
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from .attention_scores import ScoreTerms, by_head, changed_scores

LOWEST = jnp.finfo(jnp.float32).min


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SoftmaxSums:
    """The largest score m of each query, and the sums of eˢ⁻ᵐ and of eˢ⁻ᵐ v."""

    most: Array  # (B, K, R, 1) f32
    total: Array  # (B, K, R, 1) f32
    out: Array  # (B, K, R, w) f32

    @classmethod
    def empty(cls, *shape: int) -> "SoftmaxSums":
        """Of no keys, for values of the last of the sizes (B, K, R, w)."""
        one = (*shape[:-1], 1)
        return cls(jnp.full(one, LOWEST), jnp.zeros(one), jnp.zeros(shape))

    def result(self) -> Array:
        """The means of the values (B, K, R, w); 0 for a query that saw no key."""
        some = self.total > 0
        return jnp.where(some, self.out / jnp.where(some, self.total, 1.0), 0.0)


@dataclasses.dataclass(frozen=True)
class Queries:
    """Where queries are, and what they see.

    R of `SoftmaxSums` is G · T: the T queries of each of G heads that share keys.
    """

    position: Array  # (B, 1, 1, T, 1) int32
    window: Array | int  # how many tokens a query sees, itself included; or (B, 1, 1, T, 1)
    scale: float
    terms: ScoreTerms
    near: int | None = None  # of those that it sees, it sees the last `near` only, ...
    sinks: int = 0  # ... and the first `sinks` tokens

    def add(
        self,
        sums: SoftmaxSums,
        products: Array,
        mix: Callable[[Array], Array],
        token: Array,
        is_there: Array,
    ) -> SoftmaxSums:
        """The sums with S keys more.

        Args:
            sums: of the keys before.
            products: of queries and keys, (B, K, R, S) f32.
            mix: eˢ⁻ᵐ (B, K, R, S) f32 -> their sums of values (B, K, R, w) f32.
            token: (1 or B, S) int32, where the keys are.
            is_there: (B, S) bool, whether a key is one.
        """
        batch, heads, _, keys = products.shape
        scores = products.reshape(batch, heads, -1, self.position.shape[3], keys) * self.scale
        distance = self.position - token[:, None, None, None]
        scores = changed_scores(scores, self.terms, distance)
        allowed = (distance >= 0) & (distance < self.window) & is_there[:, None, None, None]
        if self.near is not None:
            allowed &= (distance < self.near) | (token[:, None, None, None] < self.sinks)
        allowed = jnp.broadcast_to(allowed, scores.shape).reshape(products.shape)
        scores = jnp.where(allowed, scores.reshape(products.shape), LOWEST)
        most = jnp.maximum(sums.most, scores.max(-1, keepdims=True))
        shares = jnp.where(allowed, jnp.exp(scores - most), 0.0)
        rest = jnp.exp(sums.most - most)
        total = sums.total * rest + shares.sum(-1, keepdims=True)
        return SoftmaxSums(most, total, sums.out * rest + mix(shares))

    def add_sinks(self, sums: SoftmaxSums) -> SoftmaxSums:
        """The sums with one key more for each head, which has a score and no value."""
        if self.terms.sinks is None:
            return sums
        _, heads, rows, _ = sums.most.shape
        steps = self.position.shape[3]
        sinks = by_head(self.terms.sinks, heads)  # (1, K, G, 1, 1)
        sinks = jnp.broadcast_to(sinks, (1, heads, rows // steps, steps, 1))
        sinks = sinks.reshape(1, heads, rows, 1)
        most = jnp.maximum(sums.most, sinks)
        rest = jnp.exp(sums.most - most)
        return SoftmaxSums(most, sums.total * rest + jnp.exp(sinks - most), sums.out * rest)


def chosen(which: Array, new: SoftmaxSums, old: SoftmaxSums) -> SoftmaxSums:
    """The sums of each row (B,) from one of two."""
    which = which[:, None, None, None]
    return jax.tree.map(lambda a, b: jnp.where(which, a, b), new, old)
