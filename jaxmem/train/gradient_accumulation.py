"""accumulate: the gradient of a batch as the mean over micro-batches, one in memory at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..core.arguments import POSITIVE, takes


@takes(count=POSITIVE)
def accumulate(loss: Callable, count: int) -> Callable:
    """A function (params, batch) -> (loss, gradient) that runs `count` micro-batches in turn.

    `loss(params, batch)` is a mean over rows, and the first axis of every array in `batch` counts
    rows. The loss is summed in f32, the gradient in the params' dtypes. With `count=1` the function
    is `jax.value_and_grad(loss)`.

    Raises:
        ValueError: `count` does not divide the number of rows (raised by the function).

    Example:
        >>> import jax.numpy as jnp
        >>> loss = lambda w, x: ((x * w) ** 2).mean()
        >>> value, slope = accumulate(loss, 2)(jnp.ones(()), jnp.array([1.0, 2.0, 3.0, 4.0]))
        >>> float(value), float(slope)
        (7.5, 15.0)
    """
    if count == 1:
        return jax.value_and_grad(loss)

    def accumulated(params: Any, batch: Any) -> tuple[Array, Any]:
        rows = micro_batches(batch, count)

        def add(total, micro_batch):
            new = jax.value_and_grad(loss)(params, micro_batch)
            return jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, new), None

        zero = lambda x: jnp.zeros(x.shape, x.dtype)
        start = jnp.zeros((), jnp.float32), jax.tree.map(zero, params)
        (value, gradient), _ = lax.scan(add, start, rows)
        return value / count, jax.tree.map(lambda g: g / jnp.asarray(count, g.dtype), gradient)

    return accumulated


def micro_batches(batch: Any, count: int) -> Any:
    """The batch with a first axis of `count` micro-batches before that of rows.

    Row i goes to micro-batch i mod count, so that no row of a sharded batch moves.

    Raises:
        ValueError: `count` does not divide the number of rows.

    Example:
        >>> micro_batches(jnp.arange(6), 2).tolist()
        [[0, 2, 4], [1, 3, 5]]
    """
    rows = {len(x) for x in jax.tree.leaves(batch)}
    if any(n % count for n in rows):
        raise ValueError(f"{count} micro-batches of {sorted(rows)} rows, expected a divisor")
    split = lambda x: jnp.moveaxis(x.reshape(len(x) // count, count, *x.shape[1:]), 1, 0)
    return jax.tree.map(split, batch)
