"""AdaLoRA: u · diag(e) · v, of whose triples the least important are dropped (Zhang et al., 2023).

The importance of a triple is that of its e, plus the means of those of its column of u and its row
of v; that of a number is EMA(|w · g|) · EMA(| |w · g| − EMA |).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from ..core.arguments import KEY, REGEX, TREE, takes
from .lora import adapters
from .rank_rules import RANK

SMOOTHING = 0.85  # of both averages


class RankState(NamedTuple):
    """The state of `adaptive_rank`: the inner optimizer's, and the averages of each number."""

    count: Array
    sensitivity: Any
    uncertainty: Any
    kept: Any  # {path: (*stack, rank) bool}: the triples that are left
    inner: Any


@takes(key=KEY, params=TREE, rank=RANK, where=REGEX)
def triples(
    key: Array, params: Any, rank: int | Mapping[str, int], where: str = ".*kernel"
) -> dict[str, dict]:
    """{path: {"u", "v", "e"}}: pairs with a value e (*stack, rank) for each column of u, first 0.

    `attach` takes them, and `adaptive_rank` trains them; begin with a rank half as large again as
    the one that is to be left. u and v are random, of variance 1/n and 1/k: the rows of v and the
    columns of u have lengths of about 1, and `orthogonality` keeps them apart.

    Raises:
        ValueError: as `adapters`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> made = triples(jax.random.key(0), {"kernel": jnp.ones((64, 32))}, 6)
        >>> jax.tree.map(jnp.shape, made)
        {'kernel': {'e': (6,), 'u': (32, 6), 'v': (6, 64)}}
    """
    made = {}
    for i, (path, pair) in enumerate(adapters(key, params, rank, where).items()):
        shape = pair["u"].shape
        drawn = jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, i), 1), shape)
        e = jnp.zeros((*shape[:-2], shape[-1]), jnp.float32)
        made[path] = {"u": drawn * shape[-2] ** -0.5, "v": pair["v"], "e": e}
    return made


@takes()
def orthogonality(pairs: dict[str, dict]) -> Array:
    """The mean of ‖uᵀu − 1‖² and ‖v vᵀ − 1‖² of the pairs: add half of it to the loss.

    Example:
        >>> import jax.numpy as jnp
        >>> float(orthogonality({"kernel": {"u": jnp.eye(4, 2), "v": jnp.eye(2, 3)}}))
        0.0
    """
    error = lambda x: jnp.square(x @ x.mT - jnp.eye(x.shape[-2])[(None,) * (x.ndim - 2)])
    sums = [error(x).sum((-2, -1)).mean() for p in pairs.values() for x in (p["u"].mT, p["v"])]
    return jnp.stack(sums).mean()


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

    From step `begin` to `end`, the average rank falls from the first one to `rank` along a cubic
    curve; every `every` steps the triples are ranked anew, and dropped ones may come back. After
    `end` they stay dropped. In a stack of layers, each layer drops as many triples, its own: so the
    arrays that `shrink` makes are smaller. Its update wants the pairs as params.

    Args:
        optimizer: of the pairs.
        rank: the average over weights that is left.
        begin: the first step that drops some, after a warm-up at full rank.
        end: the step from which `rank` is the average.
        every: steps between two choices.

    Raises:
        ValueError: `rank` is not above 0, `every` is below 1, or not 0 <= `begin` < `end`; params
            are no triples, or their average rank is below `rank`.

    Example:
        >>> import jax, jax.numpy as jnp, optax
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
        first = sum(x.shape[-1] for x in values.values())
        last = round(rank * len(values))
        left = jnp.clip((end - count) / (end - begin), 0.0, 1.0) ** 3
        budget = last + jnp.round((first - last) * left).astype(jnp.int32)
        due = (count > begin) & (count <= end) & ((count % every == 0) | (count == end))
        chosen = _most_important(values, budget)
        kept = jax.tree.map(lambda new, old: jnp.where(due, new, old), chosen, state.kept)
        masked = lambda path, e: jnp.where(kept[path], e, -params[path]["e"])
        updates = {path: x | {"e": masked(path, x["e"])} for path, x in updates.items()}
        return updates, RankState(count, sensitivity, uncertainty, kept, inner)

    return optax.GradientTransformation(init, update)


def _check_triples(pairs: Any, rank: float) -> None:
    if not isinstance(pairs, Mapping) or any("e" not in pair for pair in pairs.values()):
        raise ValueError("adaptive_rank trains triples, expected those of jm.adapters.triples")
    average = sum(pair["e"].shape[-1] for pair in pairs.values()) / len(pairs)
    if average < rank:
        raise ValueError(f"the average rank is {average:g}, expected more than the {rank:g} left")


def _most_important(values: dict[str, Array], budget: Array) -> dict[str, Array]:
    """{path: (*stack, rank) bool}: in each layer the triples of the highest values.

    The places of all weights compete, a place being the i-th best triple of each layer of a stack,
    worth the mean over layers; `budget` places are kept.
    """
    places = {}
    for path, x in values.items():
        ordered = -jnp.sort(-x.reshape(-1, x.shape[-1]), axis=-1)
        places[path] = ordered.mean(0)
    flat = jnp.concatenate(list(places.values()))
    position = jnp.argsort(jnp.argsort(-flat, stable=True))  # 0 is the best
    kept, start = {}, 0
    for path, x in values.items():
        own = position[start : start + x.shape[-1]] < budget
        start += x.shape[-1]
        order = jnp.argsort(jnp.argsort(-x, axis=-1, stable=True), axis=-1)
        kept[path] = order < own.sum()
    return kept


@takes()
def shrink(pairs: dict[str, dict]) -> dict[str, dict]:
    """Pairs {"u", "v"} without the triples whose e is 0 in every layer; e is in u.

    A weight with no triple left has no pair. Arrays are smaller, and so are the file and the
    compiled step. Where layers of a stack have other numbers of triples, the most are kept.

    Raises:
        ValueError: the pairs have no e.

    Example:
        >>> import jax.numpy as jnp
        >>> e = jnp.array([[3.0, 0.0, 0.0], [0.0, 0.0, 2.0]])
        >>> pairs = {"kernel": {"u": jnp.ones((2, 8, 3)), "v": jnp.ones((2, 3, 16)), "e": e}}
        >>> jax.tree.map(jnp.shape, shrink(pairs)), shrink(pairs)["kernel"]["u"][:, 0].tolist()
        ({'kernel': {'u': (2, 8, 1), 'v': (2, 1, 16)}}, [[3.0], [2.0]])
    """
    if any("e" not in pair for pair in pairs.values()):
        raise ValueError("shrink takes triples, expected those of jm.adapters.triples")
    smaller = {}
    for path, pair in pairs.items():
        rank = int((pair["e"] != 0).sum(-1).max())
        if rank:
            chosen = jnp.argsort(-jnp.abs(pair["e"]), axis=-1)[..., :rank]
            u = pair["u"] * pair["e"][..., None, :]
            smaller[path] = {
                "u": jnp.take_along_axis(u, chosen[..., None, :], -1),
                "v": jnp.take_along_axis(pair["v"], chosen[..., None], -2),
            }
    return smaller
