"""What a kernel says of itself to the compiler: the bytes that its grid moves, and its products."""

import math
from typing import Any

import jax


def cost(x: Any, weight: Any, y: Any, *, rows: int, flops: int) -> Any:
    """The cost of a grid that keeps `rows` rows of x on the chip and reads the weight for each.

    x and y (m, n) move once, and the tree `weight` once for each `rows` of the m.

    Example:
        >>> import jax.numpy as jnp
        >>> x, w, y = (jnp.ones(s, jnp.bfloat16) for s in ((300, 64), (64, 128), (300, 128)))
        >>> cost(x, w, y, rows=256, flops=0).bytes_accessed == 2 * (300 * 192 + 2 * 64 * 128)
        True
    """
    from jax.experimental import pallas as pl  # a tenth of a second, so not with jaxmem

    size = lambda tree: sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(tree))
    bytes = size((x, y)) + -(-y.shape[0] // rows) * size(weight)
    return pl.CostEstimate(flops=flops, transcendentals=0, bytes_accessed=bytes)
