"""fisher: ½ · ‖w‖² · mean E(∂ log p / ∂w)²: the nats that an error as large as a weight would cost.

One backward pass a batch, with labels that the model draws itself, so that the squared gradient of
their summed log-likelihood is an unbiased estimate of the sum over predictions (Kunstner, 2019).
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..core.fold import Fold, matrix_shape
from ..core.leaf import decode, is_encoded
from ..core.paths import paths
from ..core.usage import summed_axes, uses
from .batches import tuples


def fisher(
    fn: Callable, params: Any, batches: Iterable[tuple], *, seed: int = 0
) -> dict[str, np.ndarray]:
    """{path: nats a prediction, for each layer of a stack}, of the model `fn(params, *batch)`.

    `fn` returns logits, (..., classes). To second order, an error of the size ε·‖w‖ in no
    particular direction raises KL(before ‖ after) by ε² times this number: what `budget` takes as
    its `sensitivity`. A few hundred tokens of any fluent text are enough, also of text that the
    model wrote itself; random tokens overrate the embedding.

    Takes the dense weights and a gradient of their size in memory, and the activations of a batch.

    Raises:
        ValueError: no batch.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> found = jm.fisher(lambda p, x: x @ p["w"], {"w": jnp.eye(4)}, [(jnp.ones((8, 4)),)])
        >>> bool(0.1 < found["w"] < 1.0)
        True
    """
    total, predictions, ways = {}, 0, None
    for i, batch in enumerate(tuples(batches, "fisher")):
        if ways is None:
            found = uses(fn, params, *batch)
            ways = tuple((path, summed_axes(path, found)) for path in paths(params))
        key = jax.random.key(seed + i)
        squares, count = _squares((fn, ways), params, batch, key)
        total = {path: total.get(path, 0.0) + np.asarray(s) for path, s in squares.items()}
        predictions += int(count)
    return {path: s / predictions for path, s in total.items()}


def gradients(
    loss: Callable, params: Any, batches: Iterable[tuple], uses: Mapping | None = None
) -> dict[str, Array]:
    """{path: mean of ∂loss/∂w}, f32, as the matrices (*stack, n, k) that solvers see.

    `loss(params, *batch)` is a number. `Prune(codec, jm.solvers.pruning_scores.taylor)` takes the
    result as its `stats`. `uses` says which axes each weight is summed over, as in `encode`; leaves
    that are no matrices are left out. Holds a gradient of all weights in memory.

    Raises:
        ValueError: no batch.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> from jaxmem.solvers.pruning_scores import taylor
        >>> params, x = {"w": jnp.array([[3.0], [1.0]])}, jnp.array([[0.1, 9.0]])
        >>> found = jm.gradients(lambda p, x: (x @ p["w"]).sum(), params, [(x,)])
        >>> found["w"].tolist()
        [[0.10000000149011612, 9.0]]
        >>> plan = {"w": jm.Prune(jm.Bitmask(0.5), taylor)}
        >>> jm.decode(jm.encode(params, plan, stats=found))["w"].tolist()  # .3 against 9
        [[0.0], [1.0]]
    """
    total, count, slope = None, 0, jax.jit(jax.grad(loss, allow_int=True))
    for batch in tuples(batches, "gradients"):
        here = slope(params, *batch)
        total = here if total is None else jax.tree.map(jnp.add, total, here)
        count += 1
    found = zip(paths(params), jax.tree.leaves(total))
    fold = lambda path, g: (
        Fold.from_weight(g.astype(jnp.float32), summed_axes(path, uses))[0] / count
    )
    moving = lambda g: g.ndim > 1 and jnp.issubdtype(g.dtype, jnp.floating)
    return {path: fold(path, g) for path, g in found if moving(g)}


@functools.partial(jax.jit, static_argnums=0)
def _squares(how, params, batch, key):
    fn, ways = how
    leaves, tree = jax.tree.flatten(decode(params), is_leaf=is_encoded)
    moving = [jnp.issubdtype(w.dtype, jnp.floating) for w in leaves]
    given = [w for w, m in zip(leaves, moving) if m]

    def likelihood(given):
        it = iter(given)
        logits = fn(tree.unflatten([next(it) if m else w for w, m in zip(leaves, moving)]), *batch)
        logits = jax.nn.log_softmax(logits.astype(jnp.float32))
        drawn = jax.random.categorical(key, jax.lax.stop_gradient(logits))
        return jnp.take_along_axis(logits, drawn[..., None], -1).sum(), drawn.size

    grads, count = jax.grad(likelihood, has_aux=True)(given)
    ways = [way for way, m in zip(ways, moving) if m]
    return {p: _each_layer(w, g, a) for (p, a), w, g in zip(ways, given, grads)}, count


def _each_layer(w, g, axes):
    """½ · ‖w‖² · ‖g‖² / size over each slice of the weight's stack."""
    shape = matrix_shape(w, axes) if w.ndim > 1 else w.shape
    depth = len(shape[:-2])
    square = lambda a: jnp.square(a.astype(jnp.float32)).sum(tuple(range(depth, a.ndim)))
    size = max(1, w.size // max(1, int(np.prod(w.shape[:depth]))))
    return 0.5 * square(w) * square(g) / size
