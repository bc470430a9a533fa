"""descend: codes and scales in turns, each the best given the other, by ‖x · (w − ŵ)‖² itself.

What GPTQ settles it never looks at again. Here each weight is, in turn, snapped to where the loss
is least given all others, and each scale is refitted to its codes given the others. Both only
lower the loss. Behdin et al., 2023 (QuantEase, codes); Zhang et al., 2024 (COMQ, both).
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax

from .obs import BLOCK

SWEEPS = 8  # over the groups of a row


def losses(wrong: Array, gram: Array) -> Array:
    """‖x · wrong‖² of each row (n,), of a matrix (n, k) and H = E[x xᵀ].

    Example:
        >>> import jax.numpy as jnp
        >>> losses(jnp.array([[1.0, 2.0]]), jnp.eye(2)).tolist()
        [5.0]
    """
    return (jnp.matmul(wrong, gram, precision="highest") * wrong).sum(-1)


def refit(matrix: Array, units: Array, scale: Array, gram: Array, group: int) -> Array:
    """The scales (n, groups) with which `units` (n, k), ŵ at scale 1, lose less: one after another.

    A scale that would come out negative, and one whose group has no unit, stays.

    Example:
        >>> import jax.numpy as jnp
        >>> units, gram = jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 0.5], [0.5, 1.0]])
        >>> refit(3 * units, units, jnp.ones((1, 1)), gram, 2).round(1).tolist()
        [[3.0]]
    """
    k, groups = matrix.shape[1], scale.shape[1]
    short = groups * group - k
    cut = lambda a: jnp.pad(a, ((0, 0), (0, short))).reshape(len(a), groups, group)
    parts = cut(units)  # (n, groups, group)

    def row(part):
        """One group's products with all others, (n, groups), and with the matrix, (n,)."""
        own, fed = part  # (n, group), (group, k)
        reach = jnp.matmul(own, fed, precision="highest")  # (n, k)
        return (cut(reach) * parts).sum(-1), (reach * matrix).sum(-1)

    feeds = jnp.pad(gram, ((0, short), (0, 0))).reshape(groups, group, k)
    square, right = lax.map(row, (parts.swapaxes(0, 1), feeds))
    square, right = square.swapaxes(0, 1), right.T  # (n, groups, groups), (n, groups)

    def one(i, scale):  # no solver: LAPACK's batches may wait for each other on few threads
        g = i % groups
        curve, old = square[:, g, g], scale[:, g]
        slope = right[:, g] - (square[:, g] * scale).sum(-1)
        new = old + slope / jnp.where(curve > 0, curve, 1.0)
        new = jnp.where((curve > 0) & (new > 0), new, old)
        return scale.at[:, g].set(new)

    return lax.fori_loop(0, SWEEPS * groups, one, scale)


def settle_again(
    matrix: Array, rounded: Array, gram: Array, order: Array, snap: Callable[[Array, Array], Array]
) -> Array:
    """`rounded` (n, k) with each weight, in `order`, where the loss is least given the others.

    `snap(values (n,), j)` says what the weights of input j can be. An input that was never fed
    stays as it is.

    Example:
        >>> import jax.numpy as jnp
        >>> w, gram = jnp.array([[0.6, 0.6]]), jnp.array([[1.0, 0.9], [0.9, 1.0]])
        >>> near = jnp.round(w)  # each by itself: both up, and the errors add up
        >>> settle_again(w, near, gram, jnp.arange(2), lambda x, j: jnp.round(x)).tolist()
        [[0.0, 1.0]]
    """
    k = matrix.shape[1]
    size = min(BLOCK, k)
    more = -k % size
    wrong = jnp.pad((rounded - matrix).T[order], ((0, more), (0, 0)))  # (k, n), as they come
    wanted = jnp.pad(matrix.T[order], ((0, more), (0, 0)))
    gram = jnp.pad(gram[order][:, order], ((0, more), (0, more)))
    order = jnp.pad(order, (0, more))

    def block(wrong, start):
        fed = lax.dynamic_slice_in_dim(gram, start, size, 0)  # (size, k)
        own = lax.dynamic_slice_in_dim(fed, start, size, 1)
        slope = jnp.matmul(fed, wrong, precision="highest")  # (size, n)
        here = lax.dynamic_slice_in_dim(wrong, start, size, 0)

        def one(i, state):
            here, slope = state
            curve, old, target = own[i, i], here[i], wanted[start + i]
            best = target + old - slope[i] / jnp.where(curve > 0, curve, 1.0)
            new = jnp.where(curve > 0, snap(best, order[start + i]) - target, old)
            return here.at[i].set(new), slope + own[:, i][:, None] * (new - old)[None]

        here, _ = lax.fori_loop(0, size, one, (here, slope))
        return lax.dynamic_update_slice_in_dim(wrong, here, start, 0), None

    starts = jnp.arange(0, k + more, size, dtype=jnp.int32)
    wrong = lax.scan(block, wrong, starts)[0][:k]
    return matrix + wrong[jnp.argsort(order[:k])].T
