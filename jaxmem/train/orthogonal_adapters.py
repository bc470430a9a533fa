"""O-LoRA: Σ ‖D · vᵀ‖² / ‖D‖², of new adapters v and what the old ones read, D (Wang et al., 2023).

An adapter w + u · v that reads no direction of the inputs that old adapters read does not change
what these do.
"""

import jax
import jax.numpy as jnp
from jax import Array

from ..core.arguments import POSITIVE, TREE, takes


@takes(pairs=TREE, rank=POSITIVE)
def adapter_directions(
    pairs: dict[str, dict], rank: int, *, before: dict[str, Array] | None = None
) -> dict[str, Array]:
    """{path: (*stack, rank, k) in bfloat16}: the directions that adapters read most, with weights.

    They are the right singular vectors of u · v, times their singular values. With the directions
    `before`, of earlier tasks, both are put together and cut to `rank` again, so that the bytes do
    not grow with the number of tasks. `pairs` are those of `jm.adapters.adapters`.

    Raises:
        ValueError: `rank` is over the rank of the pairs, `before` is of other paths, or an adapter
            is no pair of u and v, such as a bottleneck.

    Example:
        >>> pairs = {"w": {"u": jnp.ones((8, 1)), "v": jnp.eye(1, 4)}}
        >>> abs(adapter_directions(pairs, 1)["w"]).round(2).tolist()
        [[2.8125, 0.0, 0.0, 0.0]]
    """
    _check_pairs(pairs)
    least = min(pair["v"].shape[-2] for pair in pairs.values())
    if rank > least:
        raise ValueError(f"rank is {rank}, expected at most that of the pairs, {least}")
    if before is not None and set(before) != set(pairs):
        raise ValueError(
            f"directions are of {sorted(before)[:3]}, and pairs of {sorted(pairs)[:3]}"
        )
    found = {}
    for path, pair in pairs.items():
        u, v = (pair[name].astype(jnp.float32) for name in ("u", "v"))
        u = u * pair["e"][..., None, :].astype(jnp.float32) if "e" in pair else u
        # u · v has the singular values of R_u · v, where R_u is small.
        rows = jnp.linalg.qr(u, mode="r") @ v
        if before is not None:
            rows = jnp.concatenate([before[path].astype(jnp.float32), rows], -2)
        _, sizes, vectors = jnp.linalg.svd(rows, full_matrices=False)
        rows = sizes[..., :rank, None] * vectors[..., :rank, :]
        found[path] = rows.astype(jnp.bfloat16)
    return found


@takes(pairs=TREE, directions=TREE)
@takes(pairs=TREE)
def orthogonality(pairs: dict[str, dict], directions: dict[str, Array]) -> Array:
    """Σ ‖D · vᵀ‖² / ‖D‖² of all pairs and the directions D of their path, a scalar in f32.

    It is 0 if no pair reads what the old ones read; a loss adds it, times a factor.

    Raises:
        ValueError: there are no directions for a pair, or an adapter is no pair of u and v.

    Example:
        >>> pairs = {"w": {"u": jnp.ones((8, 1)), "v": jnp.array([[3.0, 4.0]])}}
        >>> float(orthogonality(pairs, {"w": jnp.array([[2.0, 0.0]])}))
        9.0
    """
    _check_pairs(pairs)
    total = jnp.zeros((), jnp.float32)
    for path, pair in pairs.items():
        if path not in directions:
            raise ValueError(
                f"there are no directions of {path!r}, but of {sorted(directions)[:3]}"
            )
        old = jax.lax.stop_gradient(directions[path]).astype(jnp.float32)
        shared = jnp.einsum("...ok,...rk->...or", old, pair["v"].astype(jnp.float32))
        size = jnp.square(old).sum((-2, -1))
        share = jnp.square(shared).sum((-2, -1)) / jnp.where(size > 0, size, 1.0)
        total = total + share.sum()
    return total


def _check_pairs(pairs: dict[str, dict]) -> None:
    for path, pair in pairs.items():
        if not {"u", "v"} <= set(pair):
            raise ValueError(f"the adapter of {path!r} has {sorted(pair)}, expected u and v")
