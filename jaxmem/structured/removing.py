"""remove: drop groups of a matrix's inputs, least tr W_Gᵀ [H⁻¹]_GG⁻¹ W_G first; the rest adapt.

That is the loss ‖x·Δw‖² of losing the group G once all other weights have made up for it (Hassibi
and Stork, 1993; Kurtic et al., 2023, ZipLM). H⁻¹ shrinks with every removal, so each choice knows
of those before it. What is kept then solves the least squares problem exactly.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.scipy.linalg import cho_factor, cho_solve

DAMPING = 0.01  # of the mean diagonal of H


@functools.partial(jax.jit, static_argnums=(2, 3))
def remove(
    weights: Array, gram: Array, groups: tuple[int, ...], drop: int, damping: float = DAMPING
) -> tuple[Array, Array]:
    """(groups that stay, rising; weights (k', n) of their inputs), of weights (k, n) fed H (k, k).

    The k inputs are len(groups) equal runs. `groups` names the set of each run, and every set loses
    `drop` runs. In f32.

    Example:
        >>> import jax.numpy as jnp
        >>> gram = jnp.array([[1.0, 0.99, 0.0], [0.99, 1.0, 0.0], [0.0, 0.0, 1.0]])
        >>> stay, w = remove(jnp.array([[1.0], [1.2], [0.8]]), gram, (0, 0, 0), 1, 0.0)
        >>> stay.tolist(), [round(float(x), 2) for x in w[:, 0]]  # the second stands for the first
        ([1, 2], [2.19, 0.8])
    """
    k = len(weights)
    runs, sets = len(groups), np.asarray(groups)
    size, kept = k // runs, runs - drop * len(set(groups))
    gram = gram.astype(jnp.float32)
    mean = jnp.trace(gram) / k
    gram = gram + jnp.eye(k) * jnp.where(mean > 0, damping * mean, 1.0)
    blocks = lambda a: a.reshape(runs, size, *a.shape[1:])
    solve = jnp.linalg.solve if size > 1 else lambda a, b: b / a
    own = jnp.stack([jnp.asarray(sets == s) for s in range(sets.max() + 1)])  # (sets, runs)

    def step(_, state):
        inverse, w, there = state
        across = blocks(inverse)  # (runs, size, k)
        inner = jax.vmap(lambda g, row: lax.dynamic_slice_in_dim(row, g * size, size, 1))(
            jnp.arange(runs), across
        )
        inner = jnp.where(there[:, None, None], inner, jnp.eye(size)[None])
        parts = blocks(w)
        loss = (parts * solve(inner, parts)).sum((1, 2))
        full = (own & ~there[None]).sum(1) >= drop  # sets that have lost enough
        barred = ~there | (own & full[:, None]).any(0)
        least = jnp.argmin(jnp.where(barred, jnp.inf, loss))
        mine, rows = inner[least], across[least]  # (size, size), (size, k)
        w = w - rows.T @ solve(mine, parts[least])
        inverse = inverse - rows.T @ solve(mine, rows)
        alive = jnp.repeat(there.at[least].set(False), size)
        w = jnp.where(alive[:, None], w, 0.0)
        inverse = jnp.where(alive[:, None] & alive[None], inverse, 0.0)
        return inverse, w, there.at[least].set(False)

    start = weights.astype(jnp.float32)
    first = jnp.linalg.inv(gram), start, jnp.ones(runs, bool)
    there = lax.fori_loop(0, runs - kept, step, first)[2]
    stay = jnp.argsort(~there, stable=True)[:kept]
    inputs = (stay[:, None] * size + jnp.arange(size)[None]).reshape(-1)
    rows = gram[inputs]
    factor = cho_factor(rows[:, inputs])
    return stay, cho_solve(factor, rows @ start)


def remove_each(
    weights: Array, grams: Array, groups: tuple[int, ...], drop: int
) -> tuple[Array, Array]:
    """`remove` for each layer of stacks (layers, k, n) and (layers, k, k), one at a time."""
    stay, left = [], []
    for w, gram in zip(weights, grams, strict=True):
        found = remove(w, gram, groups, drop)
        stay.append(found[0])
        left.append(found[1].astype(w.dtype))
    return jnp.stack(stay), jnp.stack(left)


def gram_of(stats: dict, path: str) -> Array:
    """The Gram matrices of a stacked weight's input.

    Raises:
        ValueError: there are none for `path`.
    """
    if path not in stats or stats[path].second.ndim != stats[path].mean.ndim + 1:
        raise ValueError(f'removal wants stats of moments="gram" for {path}, got none')
    return stats[path].second
