"""Attention of queries over keys and values, all at once or a block of tokens at a time."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

from .attention_masks import token_distances
from .packed_texts import Packed
from .query_blocks import in_query_blocks, queries_at_once


@dataclasses.dataclass(frozen=True)
class ScoreTerms:
    """What changes a score besides its scale, where a model has more than softmax(scale * q kᵀ).

    In this order: with `softcap` a score becomes softcap * tanh(score / softcap); `bias`
    (1 or B, H, T, S) is added; ALiBi takes `slopes` (H,) for each token of distance (Press et al.,
    2022); the shares of a head sum to less than 1, as `sinks` (H,) are scores of one more key
    without a value (Xiao et al., 2023).
    """

    softcap: float = 0.0
    bias: Array | None = None
    slopes: Array | None = None
    sinks: Array | None = None

    @property
    def is_plain(self) -> bool:
        """Whether a score is a scaled product and no more."""
        return not self.softcap and self.bias is self.slopes is self.sinks is None


PLAIN = ScoreTerms()


def attend(
    q: Array,
    k: Array,
    v: Array,
    allowed: Array,
    scale: float,
    terms: ScoreTerms = PLAIN,
    position: Array | int | Packed = 0,
) -> Array:
    """softmax(scale * q kᵀ) v where `allowed`: (B, H, T, h).

    H/K query heads share a head of keys and values. They are rows of one product, so keys and
    values are never repeated. Within `scores_within` it is computed for some queries at a time.

    Args:
        q: queries (B, H, T, h).
        k: keys (B, K, S, h), K dividing H.
        v: values (B, K, S, h).
        allowed: broadcasts to (B, K, H/K, T, S).
        scale: factor of the scores before `terms`.
        terms: what else changes a score.
        position: position of the first query, or of all tokens in a tree of texts, for ALiBi.

    Example:
        >>> from jaxmem.kv_cache.attention_masks import causal
        >>> k = v = jnp.ones((1, 1, 3, 8))
        >>> attend(jnp.ones((1, 2, 3, 8)), k, v, causal(3, 3, 0, 3), 1.0).shape
        (1, 2, 3, 8)
    """
    both = ((0, 1), (0, 1))

    def scores(rows):
        return lax.dot_general(rows, k, (((3,), (3,)), both), preferred_element_type=jnp.float32)

    def mix(shares):
        shares = shares.astype(v.dtype)
        return lax.dot_general(shares, v, (((3,), (2,)), both), preferred_element_type=jnp.float32)

    is_tree = isinstance(position, Packed) and position.ends is not None
    block = queries_at_once(q.shape[0] * q.shape[1], q.shape[2], k.shape[2])
    if is_tree or block == q.shape[2]:
        return attend_by(scores, mix, q, k.shape[1], allowed, scale, terms, position)
    first = 0 if isinstance(position, Packed) else position

    def attended(q, allowed, bias, start):
        its = dataclasses.replace(terms, bias=bias)
        return attend_by(scores, mix, q, k.shape[1], allowed, scale, its, first + start)

    return in_query_blocks(attended, block, q, allowed, terms.bias)


def attend_by(
    scores: Callable[[Array], Array],
    mix: Callable[[Array], Array],
    q: Array,
    kv_heads: int,
    allowed: Array,
    scale: float,
    terms: ScoreTerms = PLAIN,
    position: Array | int | Packed = 0,
) -> Array:
    """`attend`, with functions that multiply by keys and values in place of keys and values.

    A single row is doubled: XLA for TPU turns a single row into a sum of products, for which it
    copies the whole cache into another layout (GPT-2, batch 8, v5e, jax 0.10.2: 806 MB against
    none).

    Args:
        scores: rows of queries (B, K, R, h) -> their products with the keys (B, K, R, S) f32.
        mix: shares of attention (B, K, R, S) -> their products with the values (B, K, R, h) f32.
        q: queries (B, H, T, h).
        kv_heads: K, which divides H.
        allowed: broadcasts to (B, K, H/K, T, S).
        scale: factor of the scores before `terms`.
        terms: what else changes a score.
        position: position of the first query, or of all tokens in a tree of texts, for ALiBi.
    """
    batch, heads, steps, width = q.shape
    rows = q.reshape(batch, kv_heads, -1, width)  # (B, K, G*T, h)
    if single := rows.shape[2] == 1:
        rows = jnp.broadcast_to(rows, (batch, kv_heads, 2, width))
    products = scores(rows)
    products = products.reshape(batch, kv_heads, -1, steps, products.shape[-1]) * scale
    distance = _distances(*products.shape[-2:], position)
    products = changed_scores(products, terms, distance)
    products = jnp.where(allowed, products, jnp.finfo(jnp.float32).min)
    shares = _softmax(products, terms.sinks)
    out = mix(shares.reshape(batch, kv_heads, -1, shares.shape[-1]))
    out = out[:, :, :1] if single else out
    return out.astype(q.dtype).reshape(batch, heads, steps, out.shape[-1])


def _distances(queries: int, keys: int, position: Array | int | Packed) -> Array:
    """Tokens from key s back from query t: (1 or B, 1, 1, queries, keys)."""
    if isinstance(position, Packed):
        if position.ends is not None:
            return position.distances()
        position = 0  # a text's tokens stand one after the other
    return token_distances(queries, keys, position)[None, None, None]


def changed_scores(products: Array, terms: ScoreTerms, distance: Array) -> Array:
    """Scores (B, K, G, T, S) f32 with a soft cap, a bias and ALiBi.

    `distance` (1 or B, 1, 1, T, S) is how many tokens a key is before a query.

    Example:
        >>> scores = jnp.array([0.0, 1e9]).reshape(1, 1, 1, 1, 2)
        >>> changed_scores(scores, ScoreTerms(softcap=5.0), jnp.zeros((1, 1, 1, 1, 2))).tolist()
        [[[[[0.0, 5.0]]]]]
    """
    if terms.softcap:
        products = terms.softcap * jnp.tanh(products / terms.softcap)
    if terms.bias is not None:
        shape = (len(terms.bias), products.shape[1], -1, *terms.bias.shape[-2:])
        products = products + terms.bias.astype(jnp.float32).reshape(shape)
    if terms.slopes is not None:
        slopes = by_head(terms.slopes, products.shape[1])
        products = products - slopes * distance.astype(jnp.float32)
    return products


def _softmax(products: Array, sinks: Array | None) -> Array:
    """Shares (B, K, G, T, S) of the keys; `sinks` (H,) are scores of a key without a value."""
    if sinks is None:
        return jax.nn.softmax(products, axis=-1)
    sinks = by_head(sinks, products.shape[1])
    most = lax.stop_gradient(jnp.maximum(products.max(-1, keepdims=True), sinks))
    shares = jnp.exp(products - most)
    return shares / (shares.sum(-1, keepdims=True) + jnp.exp(sinks - most))


def per_head_product(x: Array, y: Array, axis: int) -> Array:
    """x (B, K, R, c) times y (B, K, ...) over `axis` of y, for each of (B, K), in f32."""
    dims = (((3,), (axis,)), ((0, 1), (0, 1)))
    return lax.dot_general(x, y.astype(x.dtype), dims, preferred_element_type=jnp.float32)


def by_head(values: Array, kv_heads: int) -> Array:
    """Numbers (H,) as f32 (1, K, H/K, 1, 1), which goes with scores (B, K, G, T, S).

    G is H/K, or 2 where a single row was doubled.

    Example:
        >>> by_head(jnp.arange(6), 2).shape
        (1, 2, 3, 1, 1)
    """
    return jnp.asarray(values, jnp.float32).reshape(1, kv_heads, -1, 1, 1)
