"""straight_through, movement: the model uses masked weights, the optimizer has the dense ones.

The params of the training loop are the masked weights; the dense weights are in the optimizer's
state. The gradient at the masked weights updates the dense ones, as if there were no mask (Bengio
et al., 2013).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from ..codecs.sparse import Sparse
from ..core.arguments import AT_LEAST_0, takes
from .gradual_pruning import polynomial
from .pruning_masks import (
    check_sparse,
    planned_axes,
    planned_leaves,
    replace_leaves,
    require_params,
    top_mask,
)


class Dense(NamedTuple):
    """Steps done, the optimizer's state; {path: array} of dense weights (f32), scores, masks."""

    count: Array
    inner: Any
    dense: dict[str, Array]
    scores: dict[str, Array]
    masks: dict[str, Array]


@takes(decay=AT_LEAST_0)
def straight_through(
    inner: optax.GradientTransformation,
    plan: Mapping[str, Sparse],
    *,
    decay: float = 2e-4,
    uses: Mapping | None = None,
) -> optax.GradientTransformation:
    """Trains with masks, of N:M or any sparse codec, that keep the largest dense weights each step.

    `decay` times the weight is added to the gradient of each dropped weight, so that the
    masks become stable (SR-STE). The first update sets the dropped params to zero. Zhou et al.,
    2021.

    Raises:
        TypeError: `plan` names a codec that is not sparse.

    Example:
        >>> import jax.numpy as jnp, optax, jaxmem as jm
        >>> params = {"w": jnp.array([[4.0], [1.0], [3.0], [2.0]])}
        >>> tx = straight_through(optax.sgd(1.0), {"w": jm.NM(2, 4)}, decay=0.5)
        >>> slope = {"w": jnp.array([[0.0], [-4.0], [0.0], [0.0]])}  # of a dropped weight
        >>> updates, state = tx.update(slope, tx.init(params), params)
        >>> (params["w"] + updates["w"])[:, 0].tolist(), state.dense["w"][:, 0].tolist()
        ([4.0, 4.5, 0.0, 0.0], [4.0, 4.5, 3.0, 1.0])
    """
    check_sparse(plan)

    def score(dense, old, grad, count):
        return jnp.abs(dense), 1.0

    return _with_dense(inner, plan, score, decay, uses, accumulates=False)


@takes(rate=AT_LEAST_0)
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

    A weight's score is −`rate` · Σ w · ∂loss/∂w over the steps. Weights that shrink have low scores
    however large they are, which suits fine-tuning. The share of dropped weights follows the cubic
    schedule of `polynomial`. Sanh et al., 2020.

    Args:
        inner: the optimizer.
        plan: {path: sparse codec}; the codecs say how many weights are kept at `end`.
        begin: the first step that drops weights.
        end: the step at which the codecs' density is reached.
        rate: the factor of a score's change in one step.
        uses: what `jm.uses` returns: which axes a weight is summed over; None: over axis −2.

    Raises:
        TypeError: `plan` names a codec that is not sparse.
        ValueError: `begin` and `end` are no schedule.

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
    check_sparse(plan)
    if not 0 <= begin < end:
        raise ValueError(f"a schedule wants 0 <= begin < end, got begin={begin}, end={end}")

    def score(dense, old, grad, count):
        return old - rate * dense * grad, polynomial(count, begin, end)

    return _with_dense(inner, plan, score, 0.0, uses, accumulates=True)


def _with_dense(
    inner: optax.GradientTransformation,
    plan: Mapping[str, Sparse],
    score: Callable[..., tuple[Array, Array | float]],
    decay: float,
    uses: Mapping | None,
    *,
    accumulates: bool,
) -> optax.GradientTransformation:
    """The optimizer with dense weights in its state, masked by scores after each step.

    `score(dense weight, old score, gradient, step)` returns (score, progress of the schedule).
    `accumulates` says whether scores are kept from step to step; if not, the old score is None.
    """

    def init(params):
        axes = planned_axes(plan, params, uses)
        dense = {path: w.astype(jnp.float32) for path, w in planned_leaves(plan, params).items()}
        scores = jax.tree.map(jnp.zeros_like, dense) if accumulates else {}
        progress = 0.0 if accumulates else 1.0
        masks = {
            p: top_mask(codec, jnp.abs(dense[p]), progress, axes[p]) for p, codec in plan.items()
        }
        return Dense(jnp.zeros((), jnp.int32), inner.init(params), dense, scores, masks)

    def update(gradients, state, params=None):
        require_params(params)
        grads = {p: g.astype(jnp.float32) for p, g in planned_leaves(plan, gradients).items()}
        decayed = {
            p: g + decay * jnp.where(state.masks[p], 0.0, state.dense[p]) for p, g in grads.items()
        }
        # the optimizer updates the dense weights
        updates, inner_state = inner.update(
            replace_leaves(gradients, decayed), state.inner, replace_leaves(params, state.dense)
        )
        steps, old = planned_leaves(plan, updates), planned_leaves(plan, params)
        axes = planned_axes(plan, params, uses)
        dense, scores, masks, new_updates = {}, {}, {}, {}
        for path, codec in plan.items():
            dense[path] = state.dense[path] + steps[path]
            new_score, progress = score(
                dense[path], state.scores.get(path), grads[path], state.count
            )
            if accumulates:
                scores[path] = new_score
            masks[path] = top_mask(codec, new_score, progress, axes[path])
            # the update takes the params to the new dense weights, masked
            new = jnp.where(masks[path], dense[path], 0.0)
            new_updates[path] = (new - old[path].astype(jnp.float32)).astype(old[path].dtype)
        return replace_leaves(updates, new_updates), Dense(
            state.count + 1, inner_state, dense, scores, masks
        )

    return optax.GradientTransformation(init, update)
