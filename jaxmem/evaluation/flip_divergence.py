"""flip_divergence: KL of a model's tokens after bits of its weights flipped, against before."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..train.output_losses import kl_divergence
from .flipped_bits import flip_bits


@dataclasses.dataclass(frozen=True)
class FlipDivergence:
    """Of one text and rate: the `kl` of tokens in nats, without those in the share `broken`.

    A token is broken if its logits are not all finite, as after a flip in a scale's exponent.
    """

    part: str
    rate: float
    kl: float | None
    broken: float


def flip_divergence(
    forward: Callable[[Any, Any], Array],
    params: Any,
    ids: Any,
    *,
    part: str,
    rates: Sequence[float],
    key: Array,
    before: Array | None = None,
) -> list[FlipDivergence]:
    """KL(model ‖ model with flipped bits), mean over tokens, for each rate of flips in one part.

    Args:
        forward: maps params and ids (B, T) to logits (B, T, vocab); jitted, it compiles once.
        params: the weights, dense or encoded.
        ids: the texts (B, T).
        part: one of those of `flip_bits`: "codes", "scales", "masks" or "weights".
        rates: probabilities that a bit flips.
        key: the same key flips the same bits.
        before: the logits without flips, if they are known.

    Raises:
        ValueError: a rate is not from 0 to 1, or the part is unknown.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> forward = lambda table, ids: table[ids]
        >>> table, ids = jax.random.normal(jax.random.key(0), (8, 8)), jnp.arange(8)[None]
        >>> few, many = flip_divergence(
        ...     forward, table, ids, part="weights", rates=(0.0, 0.05), key=jax.random.key(1)
        ... )
        >>> few.kl < 1e-6 < many.kl
        True
    """
    before = forward(params, ids) if before is None else before
    found = []
    for number, rate in enumerate(rates):
        flipped = flip_bits(params, rate, jax.random.fold_in(key, number), parts=[part])
        kl, whole = map(np.asarray, _divergence(before, forward(flipped, ids)))
        mean = float(kl[whole].mean(dtype=np.float64)) if whole.any() else None
        found.append(FlipDivergence(part, float(rate), mean, float(1 - whole.mean())))
    return found


@jax.jit
def _divergence(before: Array, after: Array) -> tuple[Array, Array]:
    """(KL of each token, whether it and the logits are finite)."""
    whole = jnp.isfinite(after).all(-1)
    after = jnp.where(whole[..., None], after, 0)
    kl = kl_divergence(before, after)
    return kl, whole & jnp.isfinite(kl)
