"""Optimal brain surgeon: later inputs' weights compensate for a change of one, by H⁻¹ = Uᵀ U.

With H = E[x xᵀ] and a change e_j of the weights of input j, ‖x·Δw‖² is least if the weights of all
later inputs change by −(e_j / U_jj) · U_j (Hassibi and Stork, 1993).
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.scipy.linalg import solve_triangular

BLOCK_INPUTS = 64  # inputs settled between two updates of all later inputs
_LEAST_DAMPING = 1e-6  # the first damping above 0 that is tried if the factor does not exist


def by_energy(gram: Array) -> Array:
    """The inputs (k,) in falling order of E[x²], so that those that matter most are settled first.

    Example:
        >>> import jax.numpy as jnp
        >>> by_energy(jnp.diag(jnp.array([1.0, 3.0, 2.0]))).tolist()
        [1, 2, 0]
    """
    return jnp.argsort(-jnp.diagonal(gram))


def inverse_factor(gram: Array, damping: float = 0.01) -> Array:
    """Upper triangular U (k, k), f32, with Uᵀ U = (gram + λI)⁻¹, λ = damping · mean diagonal.

    If the factor does not exist in f32 (a singular Gram matrix and little damping), the damping is
    raised tenfold until it does. The row of U of an input that was always zero (a zero row and
    column of `gram`) is zero except for 1/√λ on the diagonal. A `gram` of zeros counts as the
    identity.

    U is R⁻¹, where gram + λI = R Rᵀ and R is upper triangular: the Cholesky factor, with inputs in
    reverse order. The inverse matrix is never formed. Frantar et al., 2022, section 3.3.

    Example:
        >>> import jax.numpy as jnp
        >>> gram = jnp.array([[2.0, 1.0], [1.0, 2.0]])
        >>> u = inverse_factor(gram, 0.0)
        >>> bool(jnp.allclose(u.T @ u @ gram, jnp.eye(2), atol=1e-6))
        True
    """
    gram = gram.astype(jnp.float32)
    k = gram.shape[-1]
    mean = jnp.trace(gram) / max(k, 1)
    scaled = jnp.where(mean > 0, gram / jnp.where(mean > 0, mean, 1.0), jnp.eye(k))
    cholesky = lambda d: jnp.linalg.cholesky((scaled + d * jnp.eye(k))[::-1, ::-1])
    exists = lambda state: jnp.isfinite(state[1]).all()

    def raise_damping(state):
        damping = jnp.maximum(state[0] * 10, _LEAST_DAMPING)
        return damping, cholesky(damping)

    first = jnp.asarray(damping, jnp.float32)
    _, lower = lax.while_loop(lambda s: ~exists(s), raise_damping, (first, cholesky(first)))
    inverse = solve_triangular(lower, jnp.eye(k), lower=True)
    return inverse[::-1, ::-1] / jnp.sqrt(jnp.where(mean > 0, mean, 1.0))


def sweep(
    weights: Array,
    factor: Array,
    settle: Callable[[Array, Array, Array, Any], tuple[Array, Any]],
    state: Any = None,
    *,
    block: int = BLOCK_INPUTS,
) -> tuple[Array, Any]:
    """(settled weights (k, n), state): settles one input after the other, updating all later ones.

    `settle(rows, i, j, state) -> (row, state)` returns the final n weights of input j. `rows`
    (block, n) holds the current weights of a block of inputs; input j is its row i. `factor` is U
    of `inverse_factor`, with inputs in the order of `weights`. The last block is padded with inputs
    of weight zero, for which j ≥ k. Sums are in f32.

    Example:
        >>> import jax.numpy as jnp
        >>> gram = jnp.array([[1.0, 0.9], [0.9, 1.0]])
        >>> drop_first = lambda rows, i, j, state: (jnp.where(j == 0, 0.0, rows[i]), state)
        >>> kept, _ = sweep(jnp.ones((2, 1)), inverse_factor(gram, 0.0), drop_first)
        >>> [round(float(w), 3) for w in kept[:, 0]]
        [0.0, 1.9]
    """
    k, n = weights.shape
    size = min(block, k) or 1
    padding = -k % size
    weights = jnp.pad(weights.astype(jnp.float32), ((0, padding), (0, 0)))
    padded_diagonal = jnp.diag((jnp.arange(k + padding) >= k).astype(jnp.float32))
    factor = jnp.pad(factor, ((0, padding), (0, padding))) + padded_diagonal

    def settle_block(carry, start):
        all_errors, state = carry  # (k, n): e_j / U_jj, zero for inputs that are not settled yet
        columns = lax.dynamic_slice_in_dim(factor, start, size, 1)  # (k, size)
        block_factor = lax.dynamic_slice_in_dim(columns, start, size, 0)  # (size, size)
        # apply the compensation for all inputs before the block
        rows = lax.dynamic_slice_in_dim(weights, start, size, 0)
        rows = rows - jnp.matmul(columns.T, all_errors, precision="highest")

        def settle_one(i, inner):
            rows, errors, state = inner
            row, state = settle(rows, i, start + i, state)
            error = (rows[i] - row) / block_factor[i, i]
            rows = (rows - block_factor[i][:, None] * error[None]).at[i].set(row)
            return rows, errors.at[i].set(error), state

        first = (rows, jnp.zeros_like(rows), state)
        rows, errors, state = lax.fori_loop(0, size, settle_one, first)
        all_errors = lax.dynamic_update_slice_in_dim(all_errors, errors, start, 0)
        return (all_errors, state), rows

    starts = jnp.arange(0, k + padding, size, dtype=jnp.int32)
    (_, state), rows = lax.scan(settle_block, (jnp.zeros_like(weights), state), starts)
    return rows.reshape(k + padding, n)[:k], state
