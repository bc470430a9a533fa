"""Coordinate descent on ‖x · (w − ŵ)‖²: one code or one scale at a time, the others fixed.

GPTQ rounds each weight once and never changes it again. Here each weight in turn is rounded where
the loss is least given all others (`round_again`), and each scale is fitted to its codes given the
other scales (`refit_scales`). Neither step raises the loss. Behdin et al., 2023 (QuantEase, codes);
Zhang et al., 2024 (COMQ, both).
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax

from .inverse_hessian import BLOCK_INPUTS

SCALE_SWEEPS = 8  # times that each scale of a row is refitted


def row_losses(error: Array, gram: Array) -> Array:
    """E‖x · e‖² of each row e of `error` (n, k), given H = E[x xᵀ] = `gram` (k, k); (n,).

    Example:
        >>> import jax.numpy as jnp
        >>> row_losses(jnp.array([[1.0, 2.0]]), jnp.eye(2)).tolist()
        [5.0]
    """
    return (jnp.matmul(error, gram, precision="highest") * error).sum(-1)


def refit_scales(matrix: Array, units: Array, scale: Array, gram: Array, group: int) -> Array:
    """The scales (n, groups) refitted one after the other, each the best given all others.

    `matrix` (n, k) holds the dense weights and `units` (n, k) the rounded ones at scale 1; `group`
    inputs share a scale. A scale stays if it would become negative, or if all units of its group
    are zero.

    Example:
        >>> import jax.numpy as jnp
        >>> units, gram = jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 0.5], [0.5, 1.0]])
        >>> refit_scales(3 * units, units, jnp.ones((1, 1)), gram, 2).round(1).tolist()
        [[3.0]]
    """
    k, groups = matrix.shape[1], scale.shape[1]
    padding = groups * group - k
    split = lambda a: jnp.pad(a, ((0, 0), (0, padding))).reshape(len(a), groups, group)
    parts = split(units)  # (n, groups, group)

    # with the scales s of a row its loss is sᵀ A s − 2 bᵀ s and a constant: `square` holds the A of
    # all rows, (n, groups, groups), and `right` their b, (n, groups)
    def normal_row(inputs):
        """Row g of each A, (n, groups), and entry g of each b, (n,)."""
        part, gram_rows = inputs  # (n, group), (group, k)
        product = jnp.matmul(part, gram_rows, precision="highest")  # (n, k)
        return (split(product) * parts).sum(-1), (product * matrix).sum(-1)

    gram_rows = jnp.pad(gram, ((0, padding), (0, 0))).reshape(groups, group, k)
    square, right = lax.map(normal_row, (parts.swapaxes(0, 1), gram_rows))
    square, right = square.swapaxes(0, 1), right.T

    # no linear solver here: LAPACK's batches may deadlock where there are few threads
    def fit_one(i, scale):
        g = i % groups
        curvature, old = square[:, g, g], scale[:, g]
        gradient = right[:, g] - (square[:, g] * scale).sum(-1)
        new = old + gradient / jnp.where(curvature > 0, curvature, 1.0)
        new = jnp.where((curvature > 0) & (new > 0), new, old)
        return scale.at[:, g].set(new)

    return lax.fori_loop(0, SCALE_SWEEPS * groups, fit_one, scale)


def round_again(
    matrix: Array,
    rounded: Array,
    gram: Array,
    order: Array,
    snap: Callable[[Array, Array], Array],
) -> Array:
    """`rounded` (n, k) with each weight, in turn, rounded where the loss is least given the others.

    `matrix` (n, k) holds the dense weights; `order` (k,) says in which order inputs are visited.
    `snap(values (n,), j)` rounds values for the weights of input j. The weights of an input that
    was always zero stay as they are.

    Example:
        >>> import jax.numpy as jnp
        >>> w, gram = jnp.array([[0.6, 0.6]]), jnp.array([[1.0, 0.9], [0.9, 1.0]])
        >>> near = jnp.round(w)  # each weight by itself: both go up, and their errors add up
        >>> round_again(w, near, gram, jnp.arange(2), lambda x, j: jnp.round(x)).tolist()
        [[0.0, 1.0]]
    """
    k = matrix.shape[1]
    size = min(BLOCK_INPUTS, k)
    padding = -k % size
    # inputs first, in the order of the visits, as whole blocks
    errors = jnp.pad((rounded - matrix).T[order], ((0, padding), (0, 0)))
    targets = jnp.pad(matrix.T[order], ((0, padding), (0, 0)))
    gram = jnp.pad(gram[order][:, order], ((0, padding), (0, padding)))
    order = jnp.pad(order, (0, padding))

    def visit_block(errors, start):
        """The errors after a visit of the `size` inputs from `start` on."""
        gram_rows = lax.dynamic_slice_in_dim(gram, start, size, 0)  # (size, k)
        block_gram = lax.dynamic_slice_in_dim(gram_rows, start, size, 1)  # (size, size)
        gradient = jnp.matmul(gram_rows, errors, precision="highest")  # (size, n)
        block_errors = lax.dynamic_slice_in_dim(errors, start, size, 0)

        def visit_one(i, state):
            block_errors, gradient = state
            curvature, old, target = block_gram[i, i], block_errors[i], targets[start + i]
            best = target + old - gradient[i] / jnp.where(curvature > 0, curvature, 1.0)
            new = jnp.where(curvature > 0, snap(best, order[start + i]) - target, old)
            change = block_gram[:, i][:, None] * (new - old)[None]
            return block_errors.at[i].set(new), gradient + change

        block_errors, _ = lax.fori_loop(0, size, visit_one, (block_errors, gradient))
        return lax.dynamic_update_slice_in_dim(errors, block_errors, start, 0), None

    starts = jnp.arange(0, k + padding, size, dtype=jnp.int32)
    errors = lax.scan(visit_block, errors, starts)[0][:k]
    return matrix + errors[jnp.argsort(order[:k])].T
