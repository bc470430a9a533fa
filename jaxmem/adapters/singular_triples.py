"""Triples u · diag(e) · v beside a weight, each a column of u, a value and a row of v (AdaLoRA).

Zhang et al., 2023, begin with e = 0 and a random u: with Adam, u · e then moves less far in a step
than a column of LoRA does. Here e is first 1 and u 0, so triples learn as pairs do.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array

from ..core.arguments import KEY, REGEX, TREE, takes
from .lora import adapters
from .rank_rules import RANK

SHORT = 0.03  # the length below which a column of u counts less


@takes(key=KEY, params=TREE, rank=RANK, where=REGEX)
def triples(
    key: Array, params: Any, rank: int | Mapping[str, int], where: str = ".*kernel"
) -> dict[str, dict]:
    """{path: {"u", "v", "e"}}: pairs with a value e (*stack, rank) for each column of u, first 1.

    `attach` takes them, and `adaptive_rank` trains them; begin with a rank half as large again as
    the one that is to be left. u is 0 and v random of variance 1/k, as those of `adapters`: the
    rows of v have lengths of about 1, and `orthogonality` keeps them apart.

    Raises:
        ValueError: as `adapters`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> made = triples(jax.random.key(0), {"kernel": jnp.ones((64, 32))}, 6)
        >>> jax.tree.map(jnp.shape, made)
        {'kernel': {'e': (6,), 'u': (32, 6), 'v': (6, 64)}}
    """
    pairs = adapters(key, params, rank, where)
    return {path: pair | {"e": jnp.ones(pair["v"].shape[:-1])} for path, pair in pairs.items()}


@takes()
def orthogonality(pairs: dict[str, dict]) -> Array:
    """The mean of ‖v vᵀ − 1‖² and of the squared cosines of columns of u: add 0.1 of it to a loss.

    u · v is then a singular value decomposition, in whatever lengths of u, so that no two triples
    share what one could do. Columns shorter than 0.03 count less: u is first 0.

    Example:
        >>> import jax.numpy as jnp
        >>> float(orthogonality({"kernel": {"u": 3 * jnp.eye(4, 2), "v": jnp.eye(2, 3)}}))
        0.0
    """
    sums = []
    for pair in pairs.values():
        own = jnp.eye(pair["v"].shape[-2])[(None,) * (pair["v"].ndim - 2)]
        u = pair["u"] / jnp.sqrt(jnp.square(pair["u"]).sum(-2, keepdims=True) + SHORT**2)
        errors = (u.mT @ u) * (1 - own), pair["v"] @ pair["v"].mT - own
        sums += [jnp.square(error).sum((-2, -1)).mean() for error in errors]
    return jnp.stack(sums).mean()


@takes()
def shrink(pairs: dict[str, dict]) -> dict[str, dict]:
    """Pairs {"u", "v"} without the triples whose e is 0 in every layer; e is in u.

    A weight with no triple left has no pair. Arrays are smaller, and so are the file and the
    compiled step. Where layers of a stack have other numbers of triples, the most are kept.

    Raises:
        ValueError: the pairs have no e.

    Example:
        >>> import jax, jax.numpy as jnp
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
