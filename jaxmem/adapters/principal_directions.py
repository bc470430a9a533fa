"""PiSSA: w = (w − u · v) + u · v, u · v the largest singular values of w (Meng et al., 2024)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ..codecs import LowRank
from ..core.arguments import REGEX, TREE, takes
from ..core.leaf import is_encoded
from ..core.paths import is_whole, paths
from ..core.remainder import Remainder
from .rank_rules import RANK, ranks_of
from .weight_layers import each_layer


@takes(params=TREE, rank=RANK, where=REGEX)
def pissa(
    params: Any, rank: int | Mapping[str, int], where: str = ".*kernel"
) -> tuple[Any, dict[str, dict]]:
    """(the params less u · v, the pairs {path: {"u", "v"}}): the base is what the pairs leave.

    `rank` is a number or {regex: number}, as of `adapters`. u and v have equal norms. To encode
    the base, encode the params that come back. `to_peft` writes pairs for the base that comes back,
    not for the first one.

    Raises:
        ValueError: a weight is encoded: PiSSA changes it; or as `adapters`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmem as jm
        >>> params = {"kernel": jax.random.normal(jax.random.key(0), (64, 32))}
        >>> base, pairs = pissa(params, 8)
        >>> merged = jm.adapters.attach(base, pairs)["kernel"].decode()
        >>> bool(abs(merged - params["kernel"]).max() < 1e-5)
        True
    """
    leaves, tree = jax.tree.flatten(params, is_leaf=is_whole)
    names, pairs = paths(params), {}
    ranks = ranks_of(dict(zip(names, leaves)), rank, where)
    for path, r in ranks.items():
        i = names.index(path)
        if is_encoded(leaves[i]):
            raise ValueError(
                f"{path} is encoded, expected a dense weight: PiSSA takes its base from it"
            )

        def halves(args: tuple[Array], r: int = r) -> tuple[Array, Any]:
            w = args[0].astype(jnp.float32)
            low_rank = LowRank(r).encode_by_slices(w, (-2,), None)
            return Remainder(w, (low_rank,), (-2,), args[0].dtype).dense(), low_rank

        leaves[i], low_rank = each_layer(halves, leaves[i].ndim - 2, (leaves[i],))
        pairs[path] = {"u": low_rank.u, "v": low_rank.v}
    return tree.unflatten(leaves), pairs
