"""AdaLoRA: of the triples u · diag(e) · v the least important are dropped (Zhang et al., 2023).

The importance of a triple is that of its e, plus the means of those of its column of u and its row
of v; that of a number is EMA(|w · g|) · EMA(| |w · g| − EMA |).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from ..core.arguments import takes

SMOOTHING = 0.85  # of both averages


class RankState(NamedTuple):
    """The state of `adaptive_rank`: the inner optimizer's, and the averages of each number."""

    count: Array
    sensitivity: Any
    uncertainty: Any
    kept: Any  # {path: (*stack, rank) bool}: the triples that are left
    inner: Any


@takes()
def adaptive_rank(
    optimizer: optax.GradientTransformation,
    rank: float,
    *,
    begin: int,
    end: int,
    every: int = 10,
) -> optax.GradientTransformation:
    """The optimizer, which also sets e of the least important triples to 0.

    From step `begin` to `end`, the numbers in u and v fall along a cubic curve to at most as many
    as pairs of `rank` have, so that a triple of a large weight takes more of them; every `every`
    steps the triples are ranked anew, and dropped ones may come back. After `end` they stay
    dropped. In a stack of layers, each layer drops as many triples, its own: so the arrays that
    `shrink` makes are smaller. Its update wants the pairs as params.

    Args:
        optimizer: of the pairs.
        rank: that of pairs as large as what is left.
        begin: the first step that drops some, after a warm-up at full rank.
        end: the step from which no more than that is left.
        every: steps between two choices.

    Raises:
        ValueError: `rank` is not above 0, `every` is below 1, or not 0 <= `begin` < `end`; params
            are no triples, or their average rank is below `rank`.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from jaxmem.adapters import triples
        >>> pairs = triples(jax.random.key(0), {"kernel": jnp.ones((8, 8))}, 4)
        >>> tx = adaptive_rank(optax.sgd(0.1), 2, begin=0, end=1, every=1)
        >>> state = tx.init(pairs)
        >>> for _ in range(3):
        ...     updates, state = tx.update(pairs, state, pairs)
        ...     pairs = optax.apply_updates(pairs, updates)
        >>> state.kept["kernel"].sum().item()
        2
    """
    if not (rank > 0 and every >= 1 and 0 <= begin < end):
        raise ValueError(
            f"adaptive_rank has rank {rank}, begin {begin}, end {end} and every {every}, expected "
            "numbers above 0, and begin before end"
        )

    def init(pairs):
        _check_triples(pairs, rank)
        zeros = lambda: jax.tree.map(jnp.zeros_like, pairs)
        kept = {path: jnp.ones(pair["e"].shape, bool) for path, pair in pairs.items()}
        return RankState(jnp.zeros((), jnp.int32), zeros(), zeros(), kept, optimizer.init(pairs))

    def update(gradients, state, params=None):
        if params is None:
            raise ValueError("adaptive_rank wants the pairs as params of update")
        updates, inner = optimizer.update(gradients, state.inner, params)
        blend = lambda old, new: SMOOTHING * old + (1 - SMOOTHING) * new
        impact = jax.tree.map(lambda w, g: jnp.abs(w * g), params, gradients)
        sensitivity = jax.tree.map(blend, state.sensitivity, impact)
        spread = jax.tree.map(lambda i, s: jnp.abs(i - s), impact, sensitivity)
        uncertainty = jax.tree.map(blend, state.uncertainty, spread)
        score = jax.tree.map(jnp.multiply, sensitivity, uncertainty)
        values = {path: x["e"] + x["u"].mean(-2) + x["v"].mean(-1) for path, x in score.items()}
        count = state.count + 1
        sizes = {path: x["u"].shape[-2] + x["v"].shape[-1] for path, x in params.items()}
        first = sum(x.shape[-1] * sizes[path] for path, x in values.items())
        last = int(rank * sum(sizes.values()))
        left = jnp.clip((end - count) / (end - begin), 0.0, 1.0) ** 3
        due = (count > begin) & (count <= end) & ((count % every == 0) | (count == end))
        budget = last + jnp.floor((first - last) * left).astype(jnp.int32)
        chosen = _most_important(values, sizes, budget)
        kept = jax.tree.map(lambda new, old: jnp.where(due, new, old), chosen, state.kept)
        masked = lambda path, e: jnp.where(kept[path], e, -params[path]["e"])
        updates = {path: x | {"e": masked(path, x["e"])} for path, x in updates.items()}
        return updates, RankState(count, sensitivity, uncertainty, kept, inner)

    return optax.GradientTransformation(init, update)


def _check_triples(pairs: Any, rank: float) -> None:
    if not isinstance(pairs, Mapping) or any("e" not in pair for pair in pairs.values()):
        raise ValueError("adaptive_rank trains triples, expected those of jm.adapters.triples")
    sizes = [pair["u"].shape[-2] + pair["v"].shape[-1] for pair in pairs.values()]
    average = np.average([pair["e"].shape[-1] for pair in pairs.values()], weights=sizes)
    if average < rank:
        raise ValueError(f"the average rank is {average:g}, expected more than the {rank:g} left")


def _most_important(
    values: dict[str, Array], sizes: dict[str, int], budget: Array
) -> dict[str, Array]:
    """{path: (*stack, rank) bool}: in each layer the triples of the highest values.

    The places of all weights compete, a place being the i-th best triple of each layer of a stack,
    worth the mean over layers; they are kept, the best first, as long as their `sizes`, numbers in
    a layer, add up to at most `budget`.
    """
    places = {}
    for path, x in values.items():
        ordered = -jnp.sort(-x.reshape(-1, x.shape[-1]), axis=-1)
        places[path] = ordered.mean(0)
    flat = jnp.concatenate(list(places.values()))
    size = jnp.concatenate([jnp.full(x.shape, sizes[p], jnp.int32) for p, x in places.items()])
    best = jnp.argsort(-flat, stable=True)
    fits = jnp.zeros(flat.shape, bool).at[best].set(jnp.cumsum(size[best]) <= budget)
    kept, start = {}, 0
    for path, x in values.items():
        own = fits[start : start + x.shape[-1]]
        start += x.shape[-1]
        order = jnp.argsort(jnp.argsort(-x, axis=-1, stable=True), axis=-1)
        kept[path] = order < own.sum()
    return kept
