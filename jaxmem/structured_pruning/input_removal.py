"""remove: groups of a matrix's inputs, least tr W_Gᵀ [H⁻¹]_GG⁻¹ W_G first; the rest is refitted.

That trace is the loss ‖x·Δw‖² of removing the group G after all other weights are refitted (Hassibi
and Stork, 1993; Kurtic et al., 2023, ZipLM). H⁻¹ is updated after every removal. The remaining
weights solve the least squares problem exactly.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.scipy.linalg import cho_factor, cho_solve

from ..calibration.statistics import Moments

DAMPING = 0.01  # of the mean diagonal of H


@functools.partial(jax.jit, static_argnums=(2, 3))
def remove(
    weights: Array, gram: Array, groups: tuple[int, ...], drop: int, damping: float = DAMPING
) -> tuple[Array, Array]:
    """(the runs that stay, in order; the refitted weights (k', n) of their inputs), in f32.

    Args:
        weights: a matrix (k, n), whose k inputs are len(groups) runs of equal length.
        gram: H = E[x xᵀ] of the inputs, (k, k).
        groups: the set that each run belongs to, numbered from 0.
        drop: the number of runs that each set loses.
        damping: added to the diagonal of H, times its mean.

    Example:
        >>> import jax.numpy as jnp
        >>> gram = jnp.array([[1.0, 0.99, 0.0], [0.99, 1.0, 0.0], [0.0, 0.0, 1.0]])
        >>> stay, w = remove(jnp.array([[1.0], [1.2], [0.8]]), gram, (0, 0, 0), 1, 0.0)
        >>> stay.tolist(), [round(float(x), 2) for x in w[:, 0]]  # the second replaces the first
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
    members = jnp.stack([jnp.asarray(sets == s) for s in range(sets.max() + 1)])  # (sets, runs)
    inverse = jnp.linalg.inv(gram)
    at = np.arange(runs)
    diagonal = inverse.reshape(runs, size, runs, size)[at, :, at]  # (runs, size, size)

    def step(i, state):
        # The inverse for the remaining inputs is `inverse` − downᵀ · across; it is never formed.
        down, across, inner, w, there = state
        inner = jnp.where(there[:, None, None], inner, jnp.eye(size)[None])
        parts = blocks(w)
        loss = (parts * solve(inner, parts)).sum((1, 2))
        full = (members & ~there[None]).sum(1) >= drop  # sets that have lost `drop` runs
        barred = ~there | (members & full[:, None]).any(0)
        least = jnp.argmin(jnp.where(barred, jnp.inf, loss))
        cut = lambda a, axis: lax.dynamic_slice_in_dim(a, least * size, size, axis)
        rows = cut(inverse, 0) - jnp.matmul(cut(down, 1).T, across, precision="highest")
        rows = jnp.where(jnp.repeat(there, size)[None], rows, 0.0)  # (size, k)
        share = solve(inner[least], rows)
        w = w - rows.T @ solve(inner[least], parts[least])
        w = jnp.where(jnp.repeat(there.at[least].set(False), size)[:, None], w, 0.0)
        inner = inner - jax.vmap(lambda a, b: a.T @ b)(*(blocks(x.T).mT for x in (rows, share)))
        put = lambda a, new: lax.dynamic_update_slice_in_dim(a, new, i * size, 0)
        return put(down, rows), put(across, share), inner, w, there.at[least].set(False)

    start = weights.astype(jnp.float32)
    gone = jnp.zeros(((runs - kept) * size, k))
    first = gone, gone, diagonal, start, jnp.ones(runs, bool)
    there = lax.fori_loop(0, runs - kept, step, first)[-1]
    stay = jnp.argsort(~there, stable=True)[:kept]
    inputs = (stay[:, None] * size + jnp.arange(size)[None]).reshape(-1)
    rows = gram[inputs]
    factor = cho_factor(rows[:, inputs])
    return stay, cho_solve(factor, rows @ start)


def remove_inputs(
    linear: Mapping[str, Array], moments: Moments, groups: tuple[int, ...], drop: int
) -> tuple[Array, dict[str, Array]]:
    """`remove` for each layer of stacked linears {"kernel", "bias"}: (runs that stay, linears).

    `groups` and `drop` are as in `remove`. The mean output of the removed inputs is added to the
    bias, so that the weights are refitted to the deviations from the mean.
    """
    kernel, mean, gram = linear["kernel"], moments.mean, moments.second
    if "bias" in linear:
        gram = gram - mean[:, :, None] * mean[:, None]
    by_layer = [remove(w, h, groups, drop) for w, h in zip(kernel, gram, strict=True)]
    stay, new = (jnp.stack(parts) for parts in zip(*by_layer))
    out = {**linear, "kernel": new.astype(kernel.dtype)}
    if "bias" in linear:
        kept = take_runs(mean, stay, len(groups))
        shift = jnp.einsum("lk,lkn->ln", mean, kernel) - jnp.einsum("lk,lkn->ln", kept, new)
        out["bias"] = linear["bias"] + shift.astype(kernel.dtype)
    return stay, out


def take_runs(w: Array, stay: Array, runs: int) -> Array:
    """The runs `stay` (layers, kept) of the last axis of w (layers, ..., runs · size)."""
    cut = w.reshape(*w.shape[:-1], runs, -1)
    index = stay.reshape(len(w), *(1,) * (w.ndim - 2), -1, 1)
    return jnp.take_along_axis(cut, index, -2).reshape(*w.shape[:-1], -1)


def moments_of(stats: Mapping[str, Moments], path: str) -> Moments:
    """The moments of a stacked weight's input, with its Gram matrices.

    Raises:
        ValueError: `stats` has no Gram moments for `path`.
    """
    if path not in stats or stats[path].second.ndim != stats[path].mean.ndim + 1:
        raise ValueError(f'removal wants stats of moments="gram" for {path}, got none')
    return stats[path]
