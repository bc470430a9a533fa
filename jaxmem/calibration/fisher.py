"""fisher: ½ · ‖w‖² · mean E(∂ log p / ∂w)²: the nats that an error as large as a weight would cost.

Each batch takes one backward pass, with labels drawn from the model's own predictions. Then the
squared gradient of the summed log-likelihood is an unbiased estimate of the sum of the predictions'
squared gradients (Kunstner, 2019).
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..core.arguments import BATCHES, FUNCTION, OPTIONAL_MAPPING, TREE, takes
from ..core.fold import Fold, matrix_shape
from ..core.leaf import decode, is_encoded
from ..core.paths import arrays_only, check_same_tree, paths
from ..core.usage import summed_axes
from ..core.usage import uses as trace_uses
from .batches import tuples


@takes(fn=FUNCTION, params=TREE, batches=BATCHES)
def fisher(
    fn: Callable, params: Any, batches: Iterable[tuple], *, seed: int = 0
) -> dict[str, np.ndarray]:
    """{path: nats per prediction, for each layer of a stack}, of the model `fn(params, *batch)`.

    `fn` returns logits (..., classes). To second order, an error of size ε·‖w‖ in a random
    direction raises KL(before ‖ after) by ε² times this number; `budget` takes the result as its
    `sensitivity`. A few hundred tokens of any fluent text are enough, and the model may have
    generated that text. With random tokens the embedding's number is too high.

    The dense weights, a gradient of their size, and the activations of a batch are in memory.

    Raises:
        ValueError: there is no batch.
        TypeError: a batch is no tuple.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> found = jm.fisher(lambda p, x: x @ p["w"], {"w": jnp.eye(4)}, [(jnp.ones((8, 4)),)])
        >>> bool(0.1 < found["w"] < 1.0)
        True
    """
    fn, params = arrays_only(fn, params)
    total, predictions, axes_of = {}, 0, None
    for i, batch in enumerate(tuples(batches, "fisher")):
        if axes_of is None:
            traced = trace_uses(fn, params, *batch)
            axes_of = tuple((path, summed_axes(path, traced)) for path in paths(params))
        key = jax.random.key(seed + i)
        squares, count = _squares((fn, axes_of), params, batch, key)
        total = {path: total.get(path, 0.0) + np.asarray(s) for path, s in squares.items()}
        predictions += int(count)
    return {path: s / predictions for path, s in total.items()}


@takes(loss=FUNCTION, params=TREE, batches=BATCHES, uses=OPTIONAL_MAPPING)
def gradients(
    loss: Callable, params: Any, batches: Iterable[tuple], uses: Mapping | None = None
) -> dict[str, Array]:
    """{path: mean of ∂loss/∂w over the batches}, f32 matrices (*stack, n, k) as solvers take them.

    `loss(params, *batch)` is a number. `Prune(codec, jm.solvers.pruning_scores.taylor)` takes the
    result as its `stats`. `uses` tells which axes each weight is summed over; without it the first
    batch is traced. Leaves that are no matrices are left out. A gradient of all weights is in
    memory.

    Raises:
        ValueError: there is no batch.
        TypeError: a batch is no tuple.

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
    check_same_tree(paths(params), uses=uses)
    loss, params = arrays_only(loss, params)
    total, count, gradient = None, 0, jax.jit(jax.grad(loss, allow_int=True))
    for batch in tuples(batches, "gradients"):
        uses = trace_uses(loss, params, *batch) if uses is None else uses
        new = gradient(params, *batch)
        total = new if total is None else jax.tree.map(jnp.add, total, new)
        count += 1
    leaves = dict(zip(paths(params), jax.tree.leaves(total)))
    fold = lambda path, g: (
        Fold.from_weight(g.astype(jnp.float32), summed_axes(path, uses, leaves))[0] / count
    )
    is_matrix = lambda g: g.ndim > 1 and jnp.issubdtype(g.dtype, jnp.floating)
    return {path: fold(path, g) for path, g in leaves.items() if is_matrix(g)}


@functools.partial(jax.jit, static_argnums=0)
def _squares(
    options: tuple[Callable, tuple[tuple[str, tuple[int, ...]], ...]],
    params: Any,
    batch: tuple,
    key: Array,
) -> tuple[dict[str, Array], int]:
    """({path: `_each_layer` of one batch}, predictions in the batch).

    `options` is (fn, ((path, summed axes) of each leaf)).
    """
    fn, axes_of = options
    leaves, tree = jax.tree.flatten(decode(params), is_leaf=is_encoded)
    is_float = [jnp.issubdtype(w.dtype, jnp.floating) for w in leaves]
    floats = [w for w, m in zip(leaves, is_float) if m]

    def likelihood(floats):
        it = iter(floats)
        params = tree.unflatten([next(it) if m else w for w, m in zip(leaves, is_float)])
        logits = fn(params, *batch)
        logits = jax.nn.log_softmax(logits.astype(jnp.float32))
        drawn = jax.random.categorical(key, jax.lax.stop_gradient(logits))
        return jnp.take_along_axis(logits, drawn[..., None], -1).sum(), drawn.size

    grads, count = jax.grad(likelihood, has_aux=True)(floats)
    float_axes = [pair for pair, m in zip(axes_of, is_float) if m]
    return {p: _each_layer(w, g, a) for (p, a), w, g in zip(float_axes, floats, grads)}, count


def _each_layer(w: Array, g: Array, axes: tuple[int, ...]) -> Array:
    """½ · ‖w‖² · ‖g‖² / size for each slice of the weight's stack; `g` is the gradient of `w`."""
    shape = matrix_shape(w, axes) if w.ndim > 1 else w.shape
    depth = len(shape[:-2])
    square = lambda a: jnp.square(a.astype(jnp.float32)).sum(tuple(range(depth, a.ndim)))
    size = max(1, w.size // max(1, int(np.prod(w.shape[:depth]))))
    return 0.5 * square(w) * square(g) / size
