"""A kernel's cost estimate for the compiler: the bytes that its grid moves, and its flops."""

import math
from typing import Any

import jax


def cost(x: Any, weight: Any, y: Any, *, rows: int, flops: int) -> Any:
    """The cost of a kernel that holds `rows` rows of x on the chip at a time.

    x (m, k) and y (m, n) move once. The arrays of the tree `weight` move once for each block of
    `rows` rows.

    Example:
        >>> import jax.numpy as jnp
        >>> x, w, y = (jnp.ones(s, jnp.bfloat16) for s in ((300, 64), (64, 128), (300, 128)))
        >>> cost(x, w, y, rows=256, flops=0).bytes_accessed == 2 * (300 * 192 + 2 * 64 * 128)
        True
    """
    from jax.experimental import pallas as pl  # a tenth of a second, so not with jaxmem

    nbytes = lambda tree: sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(tree))
    blocks = -(-y.shape[0] // rows)
    moved = nbytes((x, y)) + blocks * nbytes(weight)
    return pl.CostEstimate(flops=flops, transcendentals=0, bytes_accessed=moved)
