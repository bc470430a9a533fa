"""ranks_of: the rank of each weight that gets a pair, from one number or regexes of paths."""

from collections.abc import Mapping
from typing import Any

from ..core.arguments import Kind
from ..core.fold import Fold
from ..core.paths import match
from .weight_layers import weight_fold

RANK = Kind(
    "an int, or a mapping from regexes of paths to ints",
    lambda x: all(
        isinstance(r, int) and not isinstance(r, bool)
        for r in (x.values() if isinstance(x, Mapping) else [x])
    ),
)


def ranks_of(
    leaves: Mapping[str, Any], rank: int | Mapping[str, int], where: str
) -> dict[str, int]:
    """{path: rank} of the weights whose path `where` matches, by the first regex of `rank`.

    Raises:
        ValueError: a regex matches no weight; a rank is below 1, or above the smaller side of its
            weight.

    Example:
        >>> import jax.numpy as jnp
        >>> ranks_of({"a/kernel": jnp.ones((8, 8)), "b/kernel": jnp.ones((8, 8))}, {"b.*": 2}, ".*")
        {'b/kernel': 2}
    """
    found = list(match(list(leaves), {where: True}))
    ranks = match(found, dict(rank)) if isinstance(rank, Mapping) else dict.fromkeys(found, rank)
    for path, one in ranks.items():
        check_rank(one, path, weight_fold(leaves[path])[1])
    return ranks


def check_rank(rank: int, path: str, fold: Fold) -> None:
    """Refuses a rank that a weight cannot have.

    Raises:
        ValueError: the rank is below 1, or above the smaller side of the weight.
    """
    most = min(fold.n, fold.k)
    if rank < 1:
        raise ValueError(f"the rank of {path} is {rank}, expected at least 1")
    if rank > most:
        raise ValueError(
            f"the rank of {path} is {rank}, expected at most {most}: it has {fold.k} inputs and "
            f"{fold.n} outputs"
        )
