"""truncate: the best pairs of smaller ranks, in the outputs x · (u · v): the SVD of u · v · H^½."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array

from ..core.arguments import MAPPING, OPTIONAL_MAPPING, takes
from .weight_layers import each_layer


@takes(ranks=MAPPING, stats=OPTIONAL_MAPPING)
def truncate(
    pairs: dict[str, dict], ranks: Mapping[str, int], *, stats: Mapping[str, Any] | None = None
) -> dict[str, dict]:
    """The pairs at the ranks of `ranks`, {path: rank}; a pair that it does not name is dropped.

    With `stats` of the inputs x, H = E[x xᵀ], the outputs are nearest to those of the whole pair;
    without, u · v is. `jm.bits_and_ranks` chooses such ranks.

    Raises:
        ValueError: `ranks` names no pair, or a rank is below 1 or above the pair's; `stats` lack
            a path.

    Example:
        >>> import jax, jaxmem as jm
        >>> u, v = (jax.random.normal(jax.random.key(i), (8, 3)) for i in range(2))
        >>> u = u.at[:, 2].set(u[:, 0] + u[:, 1])  # of rank 2
        >>> small = truncate({"w": {"u": u, "v": v.T}}, {"w": 2})["w"]
        >>> small["u"].shape, bool(abs(small["u"] @ small["v"] - u @ v.T).max() < 1e-4)
        ((8, 2), True)
    """
    if unknown := sorted(set(ranks) - set(pairs)):
        raise ValueError(f"ranks name {unknown[0]!r}, which is no pair")
    if stats is not None and (missing := sorted(set(ranks) - set(stats))):
        raise ValueError(f"stats have no {missing[0]}, expected the moments of its inputs")
    smaller = {}
    for path, rank in ranks.items():
        u, v = pairs[path]["u"], pairs[path]["v"]
        if not 1 <= rank <= u.shape[-1]:
            raise ValueError(f"the rank of {path} is {rank}, expected 1 to {u.shape[-1]}")

        def one(args: Any, rank: int = rank) -> tuple[Array, Array]:
            u, v, second = args
            basis, rows, _ = directions(u, v, second)
            return basis[:, -rank:], rows[-rank:]

        second = None if stats is None else stats[path].second
        new_u, new_v = each_layer(one, u.ndim - 2, (u, v, second))
        smaller[path] = {"u": new_u, "v": new_v}
    return smaller


def directions(u: Array, v: Array, second: Array | None) -> tuple[Array, Array, Array]:
    """(columns (n, r), rows (r, k), squared singular values (r,)) of u · v · H^½, least first.

    The columns are orthonormal, and columns · rows = u · v. `second` is H (k, k), its diagonal
    (k,), or None: the identity.

    Example:
        >>> u, v = jnp.diag(jnp.array([1.0, 3.0])), jnp.eye(2)
        >>> [round(float(x), 3) for x in directions(u, v, None)[2]]
        [1.0, 9.0]
    """
    basis, triangle = jnp.linalg.qr(u)
    fed = v if second is None else v @ second if second.ndim == 2 else v * second[None]
    values, vectors = jnp.linalg.eigh(triangle @ (fed @ v.T) @ triangle.T)
    return basis @ vectors, vectors.T @ triangle @ v, jnp.maximum(values, 0.0)
