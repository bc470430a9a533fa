"""tiled_cross_entropy: −log softmax(x · head)[target], from logits of some ids at a time.

The gradient of the logits is p · (1 + 2 z · log Σ exp) − the smoothed target, p the softmax: one
number a token, the log of the softmax's sum, is enough to compute it for one tile of ids after the
other. The gradient of the head is made tile by tile, and needs no second copy.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from ..core.arguments import IDS, POSITIVE, takes
from ..core.leaf import is_encoded
from .chunked_logits import Logits
from .token_losses import cross_entropy
from .vocabulary_tiles import check_head, head_tile, over_tiles, with_tile


class _Options(NamedTuple):
    """What does not change while it is computed; it is hashed."""

    axis: int
    finish: Any
    smoothing: float
    z: float
    tile: int
    vocabulary: int


@takes(targets=IDS, tile=POSITIVE)
def tiled_cross_entropy(
    logits: Logits,
    targets: Array,
    *,
    smoothing: float = 0.0,
    z: float = 0.0,
    tile: int = 2048,
) -> Array:
    """`cross_entropy(smoothing=, z=)` of each token, (B, T) f32, from `tile` ids at a time.

    Logits take B · T · tile · 4 bytes. With `chunked` they take B · chunk · V · 4, and the gradient
    of the head is in memory twice. An encoded head is decoded tile by tile and is frozen.

    Args:
        logits: hidden states and the head. `finish` works on each logit alone, such as a soft
            cap; one that adds a bias to all ids is for `chunked`.
        targets: ids (B, T) int32.
        smoothing: label smoothing.
        z: the weight of the squared log of the softmax's sum.
        tile: ids whose logits are in memory at a time; a multiple of 8 for an encoded head.

    Raises:
        ValueError: `smoothing` or `z` is out of its range, `targets` are of other tokens, or the
            ids of an encoded head are not multiples of 8.
        NotImplementedError: an encoded head has no rows of ids.

    Example:
        >>> logits = Logits(jnp.zeros((1, 4, 8)), jnp.ones((8, 16)))
        >>> values = tiled_cross_entropy(logits, jnp.zeros((1, 4), jnp.int32), tile=6)
        >>> values.shape, float(values[0, 0]).__round__(4)
        ((1, 4), 2.7726)
    """
    cross_entropy(smoothing=smoothing, z=z)  # refuses what is out of range
    if targets.shape != logits.x.shape[:2]:
        raise ValueError(f"targets are {targets.shape}, expected {logits.x.shape[:2]}")
    vocabulary = logits.head.shape[1 - logits.axis]
    tile = min(tile, vocabulary)
    check_head(logits, tile)
    options = _Options(logits.axis, logits.finish, smoothing, z, tile, vocabulary)
    return _loss(options, logits.x, logits.head, targets)


def _products(options: _Options, x: Array, head: Any, start: Array) -> tuple[Array, Array]:
    """(rows (tile, D) of the head, their products (B, T, tile) in f32)."""
    rows = head_tile(head, options.axis, start, options.tile).astype(x.dtype)
    return rows, jnp.einsum("btd,vd->btv", x, rows, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss(options: _Options, x: Array, head: Any, targets: Array) -> Array:
    return _with_total(options, x, head, targets)[0]


def _with_total(options: _Options, x: Array, head: Any, targets: Array) -> tuple[Array, tuple]:
    """The loss (B, T), and what the backward pass needs."""
    share = options.smoothing

    def add(carry, start, counted):
        total, target = carry
        logits = options.finish(_products(options, x, head, start)[1])
        part = jax.nn.logsumexp(jnp.where(counted, logits, -jnp.inf), axis=-1)
        wanted = jnp.where(_is_target(options, targets, start), 1 - share, 0.0)
        if share:
            wanted = wanted + share / options.vocabulary
        return jnp.logaddexp(total, part), target + jnp.where(counted, wanted * logits, 0).sum(-1)

    shape = x.shape[:2]
    total, target = over_tiles(options, add, (jnp.full(shape, -jnp.inf), jnp.zeros(shape)))
    value = total - target + (options.z * total**2 if options.z else 0.0)
    return value, (x, head, targets, total)


def _is_target(options: _Options, targets: Array, start: Array) -> Array:
    """Whether an id of a tile is a token's target, (B, T, tile)."""
    return targets[..., None] == (start + jnp.arange(options.tile))[None, None]


def _backward(options: _Options, kept: tuple, cotangent: Array) -> tuple:
    x, head, targets, total = kept
    frozen = is_encoded(head)
    of_total = 1 + 2 * options.z * total

    def add(carry, start, counted):
        dx, dhead = carry
        rows, products = _products(options, x, head, start)
        logits, pull = jax.vjp(options.finish, products)
        slope = jnp.exp(logits - total[..., None]) * of_total[..., None]
        wanted = jnp.where(_is_target(options, targets, start), 1 - options.smoothing, 0.0)
        slope = slope - wanted - options.smoothing / options.vocabulary
        (slope,) = pull(slope * cotangent[..., None])
        counts = jnp.where(counted, slope, 0.0).astype(x.dtype)
        dx = dx + jnp.einsum("btv,vd->btd", counts, rows, preferred_element_type=jnp.float32)
        if not frozen:
            dhead = with_tile(dhead, slope.astype(x.dtype), x, options.axis, start)
        return dx, dhead

    dhead = None if frozen else jnp.zeros(head.shape, head.dtype)
    dx, dhead = over_tiles(options, add, (jnp.zeros(x.shape, jnp.float32), dhead))
    return dx.astype(x.dtype), dhead, None


_loss.defvjp(_with_total, _backward)
