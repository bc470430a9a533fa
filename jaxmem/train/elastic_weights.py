"""EWC: ½ Σ F · (w − w*)², the Fisher F in a byte and w* in bfloat16 (Kirkpatrick et al., 2017).

What was learnt stays: a weight that mattered then is held to the value that it had.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ..core.arguments import FUNCTION, TREE, shown, takes
from ..optimizers.companded_codes import Companded, encode_companded


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Anchor:
    """Weights as they were, and how much each mattered: 3.03 bytes a weight.

    `weights` is in bfloat16, and `fisher` has codes of a byte a number, of flat arrays.
    """

    weights: Any
    fisher: Any


@takes(loss=FUNCTION, params=TREE, batch=TREE)
def squared_gradients(loss: Callable, params: Any, batch: Any) -> Any:
    """The mean over a batch's rows of each one's squared gradient, a tree like the params, in f32.

    `loss(params, row)` is the loss of rows, here of one at a time, so that only one gradient is in
    memory; the first axis of all arrays in `batch` counts rows. It is the (empirical) diagonal of
    the Fisher information, for `anchor`.

    Raises:
        ValueError: the arrays of the batch differ in rows, or have none.

    Example:
        >>> loss = lambda w, x: (w[None] * x).sum()
        >>> squared_gradients(loss, jnp.ones(2), jnp.array([[1.0, 2.0], [3.0, 0.0]])).tolist()
        [5.0, 2.0]
    """
    sizes = {x.shape[0] if getattr(x, "shape", ()) else None for x in jax.tree.leaves(batch)}
    if len(sizes) != 1 or None in sizes:
        raise ValueError(f"batch is {shown(batch)}, expected arrays (rows, ...) of as many rows")
    rows = jax.tree.map(lambda x: x[:, None], batch)
    (count,) = sizes

    def add(total, row):
        slope = jax.grad(loss)(params, row)
        return jax.tree.map(lambda a, g: a + jnp.square(g.astype(jnp.float32)), total, slope), None

    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params)
    total, _ = jax.lax.scan(add, zero, rows)
    return jax.tree.map(lambda x: x / count, total)


@takes(params=TREE, fisher=TREE)
def anchor(
    params: Any, fisher: Any, *, before: Anchor | None = None, decay: float = 1.0, seed: int = 0
) -> Anchor:
    """What `anchor_penalty` holds weights to: `params` as they are, and how much each mattered.

    With the anchor `before`, of earlier tasks, its Fisher · `decay` is added to this one's, so that
    the bytes do not grow with the number of tasks (Schwarz et al., 2018: online EWC). `fisher`, as
    `squared_gradients` gives it, is rounded at random to a byte, which is right on average.

    Raises:
        ValueError: `decay` is negative, or the trees differ.

    Example:
        >>> import jaxmem as jm
        >>> params = {"w": jnp.ones((64, 64))}
        >>> held = anchor(params, {"w": jnp.full((64, 64), 2.0)})
        >>> jm.nbytes(held), float(anchor_penalty({"w": params["w"] + 1}, held))
        (12416, 4096.0)
    """
    if not decay >= 0:
        raise ValueError(f"decay is {decay}, expected at least 0")
    trees = [fisher] if before is None else [fisher, before.weights]
    if any(jax.tree.structure(tree) != jax.tree.structure(params) for tree in trees):
        raise ValueError("params, fisher and the anchor before are not trees of one structure")
    if before is not None:
        old = _fisher(before)
        fisher = jax.tree.map(lambda new, old: new + decay * old, fisher, old)
    weights = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    return Anchor(weights, _encoded(fisher, seed))


@takes(params=TREE)
def anchor_penalty(params: Any, anchor: Anchor) -> Array:
    """½ Σ F · (w − w*)² over all weights, a scalar in f32, to be added to a loss, times a factor.

    Example:
        >>> held = anchor({"w": jnp.ones(4)}, {"w": jnp.ones(4)})
        >>> float(anchor_penalty({"w": jnp.full(4, 3.0)}, held))
        8.0
    """
    square = lambda w, f, old: (f * jnp.square(w.astype(jnp.float32) - old)).sum()
    weights = jax.tree.map(lambda x: x.astype(jnp.float32), anchor.weights)
    squares = jax.tree.map(square, params, _fisher(anchor), weights)
    return 0.5 * sum(jax.tree.leaves(squares), jnp.zeros((), jnp.float32))


@jax.jit
def _encoded(fisher: Any, seed: Array | int) -> Any:
    leaves, tree = jax.tree.flatten(fisher)
    codes = [encode_companded(x.reshape(-1), seed + i) for i, x in enumerate(leaves)]
    return tree.unflatten(codes)


def _fisher(anchor: Anchor) -> Any:
    """The Fisher in f32, in the shapes of the weights."""
    is_code = lambda x: isinstance(x, Companded)
    shaped = lambda code, like: code.decode().reshape(like.shape)
    return jax.tree.map(shaped, anchor.fisher, anchor.weights, is_leaf=is_code)
