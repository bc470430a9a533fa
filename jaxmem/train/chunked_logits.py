"""chunked: a loss of each token's logits x · head, of which few tokens' are in memory at a time."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..core.arguments import POSITIVE, Kind, check_fields, takes
from ..core.lifting import dot_general

HIDDEN = Kind(
    "hidden states (rows, tokens, width)", lambda x: hasattr(x, "shape") and len(x.shape) == 3
)
HEAD = Kind(
    "an array or an encoded leaf of two axes", lambda x: hasattr(x, "shape") and len(x.shape) == 2
)


@dataclasses.dataclass(frozen=True)
class Logits:
    """The logits of hidden states, not computed yet: `finish(x · head)`.

    Shapes: x (B, T, D); `head` (D, V), or (V, D) with `axis=1`, dense or encoded. Products are in
    f32. `finish` makes logits of them by a bias, a factor or a soft cap; a loss has gradients for
    what it closes over.

    Raises:
        TypeError: `x` has not three axes, or `head` not two.
        ValueError: `head` does not take vectors of D.

    Example:
        >>> Logits(jnp.ones((1, 8, 4)), jnp.ones((4, 16))).of(jnp.ones((1, 2, 4))).shape
        (1, 2, 16)
    """

    x: Array
    head: Any
    _: dataclasses.KW_ONLY
    axis: int = 0
    finish: Callable[[Array], Array] = lambda products: products

    def __post_init__(self):
        check_fields(self, x=HIDDEN, head=HEAD)
        if self.axis not in (0, 1) or self.head.shape[self.axis] != self.x.shape[-1]:
            raise ValueError(
                f"head has shape {self.head.shape}, expected {self.x.shape[-1]} on its axis "
                f"{self.axis}"
            )

    def of(self, rows: Array) -> Array:
        """The logits (B, n, V) of some of the hidden states (B, n, D), in f32."""
        dims = (((2,), (self.axis,)), ((), ()))
        return self.finish(dot_general(rows, self.head, dims, preferred_element_type=jnp.float32))


_LOGITS = Kind(
    "a jm.train.Logits, or a tuple of them",
    lambda x: all(isinstance(y, Logits) for y in (x if isinstance(x, tuple) and x else (x,))),
)
MASK = Kind(
    "booleans (rows, tokens), or None",
    lambda x: x is None or (hasattr(x, "shape") and len(x.shape) == 2 and x.dtype == bool),
)


@takes(logits=_LOGITS, mask=MASK, chunk=POSITIVE)
def chunked(
    loss: Callable[..., Array],
    logits: Logits | tuple[Logits, ...],
    *args: Array,
    mask: Array | None = None,
    chunk: int = 512,
) -> Array:
    """`loss` of each token, (B, T) f32, from logits of `chunk` tokens of each row at a time.

    `loss(*logits, *args)` takes the logits (B, chunk, V) of each `Logits` and the same tokens of
    each array (B, T, ...) in `args`, such as targets, and returns (B, chunk): `cross_entropy()`,
    `teacher_divergence()` or your own. Logits take B · chunk · V · 4 bytes and are computed again
    in the backward pass; all of them would take B · T · V · 4 bytes, and their gradient as many.

    Tokens where `mask` (B, T) is False have the value 0 and no gradient. The others come first, row
    by row, and chunks without any are not computed.

    Raises:
        ValueError: `chunk` does not divide T, or shapes are not those above.

    Example:
        >>> import jax, jaxmem as jm
        >>> x, head, ids = jnp.zeros((1, 8, 4)), jnp.ones((4, 16)), jnp.zeros((1, 8), jnp.int32)
        >>> values = chunked(jm.train.cross_entropy(), Logits(x, head), ids, chunk=4)
        >>> values.shape, float(values.mean()).__round__(4)
        ((1, 8), 2.7726)
    """
    outputs = logits if isinstance(logits, tuple) else (logits,)
    shape = outputs[0].x.shape[:2]
    batch, steps = shape
    inputs = [*(output.x for output in outputs), *args]
    if any(x.shape[:2] != shape for x in (*inputs, *([] if mask is None else [mask]))):
        raise ValueError(
            f"x, args and mask begin with {[x.shape[:2] for x in inputs]}"
            f"{'' if mask is None else f' and {mask.shape[:2]}'}, expected {shape} of all"
        )
    chunk = min(chunk, steps)
    if steps % chunk:
        raise ValueError(f"a chunk of {chunk} positions does not divide the {steps} of each row")
    order = None if mask is None else jnp.argsort(~mask, axis=1, stable=True)
    if mask is not None:
        inputs = [_in_order(x, order) for x in [*inputs, mask]]
    # (B, T, ...) as (chunks, B, chunk, ...)
    parts = [
        jnp.moveaxis(x.reshape(batch, steps // chunk, chunk, *x.shape[2:]), 1, 0) for x in inputs
    ]

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def values_of(parts):
        hidden, rest = parts[: len(outputs)], parts[len(outputs) :]
        scores = [output.of(x) for output, x in zip(outputs, hidden)]
        return loss(*scores, *rest).astype(jnp.float32)

    def of_part(_, parts):
        if mask is None:
            return None, values_of(parts)
        *parts, counted = parts
        none = lambda _: jnp.zeros(counted.shape, jnp.float32)
        return None, jnp.where(counted, lax.cond(counted.any(), values_of, none, parts), 0.0)

    values = lax.scan(of_part, None, parts)[1]  # (chunks, B, chunk)
    values = jnp.moveaxis(values, 0, 1).reshape(shape)
    return values if mask is None else _in_order(values, jnp.argsort(order, axis=1))


def _in_order(x: Array, order: Array) -> Array:
    """x (B, T, ...) with the tokens of each row in the order (B, T)."""
    return jnp.take_along_axis(x, order.reshape(*order.shape, *[1] * (x.ndim - 2)), 1)
