"""Optimal brain surgeon: what one input's weights lose, later inputs make up for, by H⁻¹ = Uᵀ U.

With H = E[x xᵀ] and a change e_j of the weights of input j, the least ‖x·Δw‖² is reached where the
weights of the inputs after it change by −(e_j / U_jj) · U_j (Hassibi and Stork, 1993).
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.scipy.linalg import solve_triangular

BLOCK = 64  # inputs that are settled between two products with the whole
_LEAST = 1e-6  # damping that a factor which did not exist is tried with next


def by_energy(gram: Array) -> Array:
    """The inputs in falling order of E[x²], (k,): those that matter most are settled first.

    Example:
        >>> import jax.numpy as jnp
        >>> by_energy(jnp.diag(jnp.array([1.0, 3.0, 2.0]))).tolist()
        [1, 2, 0]
    """
    return jnp.argsort(-jnp.diagonal(gram))


def inverse_factor(gram: Array, damping: float = 0.01) -> Array:
    """Upper triangular U (k, k), f32, with Uᵀ U = (gram + λI)⁻¹, λ = damping · mean diagonal.

    Where the factor does not exist in f32 (a singular Gram matrix and little damping), the damping
    is raised tenfold until it does. An input that is never fed (a zero row and column) shares
    nothing: its row of U is zero but for 1/√λ on the diagonal. A Gram matrix that is all zero
    counts as one of white inputs.

    U is R⁻¹, where H = R Rᵀ and R is upper triangular: the Cholesky factor of H in reverse order.
    The inverse of H is never formed. Frantar et al., 2022, section 3.3 (the factor).

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

    def raised(state):
        damping = jnp.maximum(state[0] * 10, _LEAST)
        return damping, cholesky(damping)

    first = jnp.asarray(damping, jnp.float32)
    _, lower = lax.while_loop(lambda s: ~exists(s), raised, (first, cholesky(first)))
    inverse = solve_triangular(lower, jnp.eye(k), lower=True)
    return inverse[::-1, ::-1] / jnp.sqrt(jnp.where(mean > 0, mean, 1.0))


def sweep(
    weights: Array,
    factor: Array,
    settle: Callable[[Array, Array, Array, Any], tuple[Array, Any]],
    state: Any = None,
    *,
    block: int = BLOCK,
) -> tuple[Array, Any]:
    """Settles the weights (k, n) of one input after the other; later inputs make up for the loss.

    `settle(rows, i, j, state) -> (row, state)` says what the n weights of input j become: row i of
    `rows` (block, n), which holds the block's inputs as they now are. `factor` is U of
    `inverse_factor`, its inputs in the same order as those of `weights`. The last block is filled
    up with inputs of weight zero, for which j ≥ k. Sums are in f32.

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
    more = -k % size
    weights = jnp.pad(weights.astype(jnp.float32), ((0, more), (0, 0)))
    filled = jnp.diag((jnp.arange(k + more) >= k).astype(jnp.float32))
    factor = jnp.pad(factor, ((0, more), (0, more))) + filled

    def settle_block(carry, start):
        lost, state = carry  # (k, n): e_j / U_jj, zero where nothing is settled yet
        across = lax.dynamic_slice_in_dim(factor, start, size, 1)  # (k, size)
        own = lax.dynamic_slice_in_dim(across, start, size, 0)
        rows = lax.dynamic_slice_in_dim(weights, start, size, 0)
        rows = rows - jnp.matmul(across.T, lost, precision="highest")

        def settle_one(i, inner):
            rows, errors, state = inner
            row, state = settle(rows, i, start + i, state)
            error = (rows[i] - row) / own[i, i]
            rows = (rows - own[i][:, None] * error[None]).at[i].set(row)
            return rows, errors.at[i].set(error), state

        first = (rows, jnp.zeros_like(rows), state)
        rows, errors, state = lax.fori_loop(0, size, settle_one, first)
        return (lax.dynamic_update_slice_in_dim(lost, errors, start, 0), state), rows

    starts = jnp.arange(0, k + more, size, dtype=jnp.int32)
    (_, state), rows = lax.scan(settle_block, (jnp.zeros_like(weights), state), starts)
    return rows.reshape(k + more, n)[:k], state
