"""straight_through, movement: the model sees masked weights, the optimizer keeps them all.

The params of the loop are the masked weights; the dense ones are in the optimizer's state, and the
gradient at the masked weights moves them, as if the mask were not there (Bengio et al., 2013).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from ..codecs.sparse import Sparse
from ..core.usage import summed_axes
from .gradual_pruning import check, find, need_params, polynomial, put, top


class Dense(NamedTuple):
    """Steps done, the optimizer's state, {path: dense weight, f32}, {path: score}, {path: mask}."""

    count: Array
    inner: Any
    dense: dict[str, Array]
    scores: dict[str, Array]
    masks: dict[str, Array]


def straight_through(
    inner: optax.GradientTransformation,
    plan: Mapping[str, Sparse],
    *,
    decay: float = 2e-4,
    uses: Mapping | None = None,
) -> optax.GradientTransformation:
    """Trains N:M (or any sparse codec's) masks that follow the largest dense weights each step.

    To the gradient of a dropped weight comes `decay` times the weight, so that it settles (SR-STE).
    The first update brings the params to their mask. Zhou et al., 2021.

    Raises:
        TypeError: the plan names a codec that is not sparse.

    Example:
        >>> import jax.numpy as jnp, optax, jaxmem as jm
        >>> params = {"w": jnp.array([[4.0], [1.0], [3.0], [2.0]])}
        >>> tx = straight_through(optax.sgd(1.0), {"w": jm.NM(2, 4)}, decay=0.5)
        >>> slope = {"w": jnp.array([[0.0], [-4.0], [0.0], [0.0]])}  # of a dropped weight
        >>> updates, state = tx.update(slope, tx.init(params), params)
        >>> (params["w"] + updates["w"])[:, 0].tolist(), state.dense["w"][:, 0].tolist()
        ([4.0, 4.5, 0.0, 0.0], [4.0, 4.5, 3.0, 1.0])
    """
    check(plan)

    def score(dense, old, slope, count):
        return jnp.abs(dense), 1.0

    return _with_dense(inner, plan, score, decay, uses, scored=False)


def movement(
    inner: optax.GradientTransformation,
    plan: Mapping[str, Sparse],
    *,
    begin: int,
    end: int,
    rate: float = 1.0,
    uses: Mapping | None = None,
) -> optax.GradientTransformation:
    """Drops the weights that training moves towards zero, most of them soon after `begin`.

    A weight's score is −`rate` · Σ w · ∂loss/∂w over the steps: weights that shrink have low ones,
    however large they are, which suits fine-tuning. The share that is gone follows the cubic
    schedule of `polynomial`. Sanh et al., 2020.

    Raises:
        TypeError: the plan names a codec that is not sparse.
        ValueError: begin and end that are no schedule.

    Example:
        >>> import jax.numpy as jnp, optax, jaxmem as jm
        >>> params = {"w": jnp.array([[4.0], [1.0], [3.0], [2.0]])}
        >>> tx = movement(optax.sgd(0.1), {"w": jm.Bitmask(0.5)}, begin=0, end=1)
        >>> slope = {"w": jnp.array([[1.0], [-1.0], [-1.0], [1.0]])}  # the largest shrinks
        >>> state = tx.init(params)
        >>> for _ in range(2):
        ...     updates, state = tx.update(slope, state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> [round(float(x), 2) for x in params["w"][:, 0]]
        [0.0, 1.2, 3.2, 0.0]
    """
    check(plan)
    if not 0 <= begin < end:
        raise ValueError(f"a schedule wants 0 <= begin < end, got begin={begin}, end={end}")

    def score(dense, old, slope, count):
        return old - rate * dense * slope, polynomial(count, begin, end)

    return _with_dense(inner, plan, score, 0.0, uses, scored=True)


def _with_dense(inner, plan, score, decay, uses, scored) -> optax.GradientTransformation:
    """`score(dense, old score, gradient, count)` gives (score, how much of the way is gone)."""
    axes = {path: summed_axes(path, uses) for path in plan}

    def init(params):
        dense = {path: w.astype(jnp.float32) for path, w in find(plan, params).items()}
        scores = jax.tree.map(jnp.zeros_like, dense) if scored else {}
        begin = 0.0 if scored else 1.0
        masks = {p: top(codec, jnp.abs(dense[p]), begin, axes[p]) for p, codec in plan.items()}
        return Dense(jnp.zeros((), jnp.int32), inner.init(params), dense, scores, masks)

    def update(gradients, state, params=None):
        need_params(params)
        slopes = {p: g.astype(jnp.float32) for p, g in find(plan, gradients).items()}
        dragged = {
            p: g + decay * jnp.where(state.masks[p], 0.0, state.dense[p]) for p, g in slopes.items()
        }
        moved, after = inner.update(put(gradients, dragged), state.inner, put(params, state.dense))
        steps, old = find(plan, moved), find(plan, params)
        dense, scores, masks, out = {}, {}, {}, {}
        for path, codec in plan.items():
            dense[path] = state.dense[path] + steps[path]
            found, gone = score(dense[path], state.scores.get(path), slopes[path], state.count)
            if scored:
                scores[path] = found
            masks[path] = top(codec, found, gone, axes[path])
            new = jnp.where(masks[path], dense[path], 0.0)
            out[path] = (new - old[path].astype(jnp.float32)).astype(old[path].dtype)
        return put(moved, out), Dense(state.count + 1, after, dense, scores, masks)

    return optax.GradientTransformation(init, update)
