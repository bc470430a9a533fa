"""rewind: train, drop the smallest weights, set the others back to early values, train again."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from ..codecs.sparse import Sparse
from ..core.arguments import takes
from ..core.fold import Fold
from .pruning_masks import (
    check_sparse,
    full_masks,
    mask_updates,
    planned_axes,
    planned_leaves,
    replace_leaves,
    require_params,
)


class Early(NamedTuple):
    """The state of `rewind`: steps done, the optimizer's state, {path: mask}, the early params."""

    count: Array
    inner: Any
    masks: dict[str, Array]
    early: Any


@takes()
def rewind(
    inner: optax.GradientTransformation,
    plan: Mapping[str, Sparse],
    *,
    rounds: int,
    steps: int,
    to: int = 0,
    uses: Mapping | None = None,
) -> optax.GradientTransformation:
    """Iterative magnitude pruning with rewinding: the lottery ticket's training.

    After each of `rounds` rounds the smallest weights of the plan are dropped, each time the same
    share of those that are left. All params return to their values at step `to`, and the optimizer
    starts anew. After the last round the kept weights train on. Frankle and Carbin, 2019; Frankle
    et al., 2020 (rewinding to a later step than 0).

    Args:
        inner: the optimizer.
        plan: {path: sparse codec}; the codecs say how many weights are kept after the last round.
        rounds: rounds that end in pruning and rewinding.
        steps: training steps per round.
        to: the step of the first round to which the params return.
        uses: what `jm.uses` returns: which axes a weight is summed over; None: over axis −2.

    Raises:
        TypeError: `plan` names a codec that is not sparse.
        ValueError: `rounds` or `steps` is below 1, or `to` is outside the first round.

    Example:
        >>> import jax.numpy as jnp, optax, jaxmem as jm
        >>> params = {"w": jnp.array([[4.0], [1.0], [3.0], [2.0]])}
        >>> tx = rewind(optax.sgd(1.0), {"w": jm.Bitmask(0.5)}, rounds=1, steps=2)
        >>> slope, state = {"w": jnp.array([[1.0], [-4.0], [0.0], [0.0]])}, tx.init(params)
        >>> for _ in range(2):  # the ticket: 1 and 3, which were the largest of 2, 9, 3 and 2
        ...     updates, state = tx.update(slope, state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> params["w"][:, 0].tolist()
        [0.0, 1.0, 3.0, 0.0]
    """
    check_sparse(plan)
    if rounds < 1 or steps < 1 or not 0 <= to < steps:
        raise ValueError(f"expected rounds, steps >= 1 and 0 <= to < steps: {rounds, steps, to}")

    def init(params):
        masks = full_masks(plan, params)
        return Early(jnp.zeros((), jnp.int32), inner.init(params), masks, params)

    def update(gradients, state, params=None):
        require_params(params)
        early = _where(state.count == to, params, state.early)
        # a step of the optimizer, without gradients of dropped weights
        grads = planned_leaves(plan, gradients)
        masked = {p: jnp.where(state.masks[p], grads[p], 0) for p in plan}
        updates, inner_state = inner.update(replace_leaves(gradients, masked), state.inner, params)
        updates = mask_updates(plan, updates, params, state.masks)
        # at the end of a round, masks of fewer weights
        count = state.count + 1
        round_ends = (count % steps == 0) & (count <= rounds * steps)
        new = planned_leaves(plan, optax.apply_updates(params, updates))
        axes, masks = planned_axes(plan, params, uses), {}
        for path, codec in plan.items():
            score = jnp.where(state.masks[path], jnp.abs(new[path]), -1.0)
            chosen = tickets(codec, score, count // steps / rounds, axes[path])
            masks[path] = jnp.where(round_ends, chosen, state.masks[path])
        # These updates take all params back to their early values.
        back = jax.tree.map(lambda a, p: (a - p).astype(p.dtype), early, params)
        back = mask_updates(plan, back, params, masks)
        return _where(round_ends, back, updates), Early(
            count, _where(round_ends, inner.init(early), inner_state), masks, early
        )

    return optax.GradientTransformation(init, update)


def tickets(codec: Sparse, scores: Array, done: Array | float, axes: tuple[int, ...]) -> Array:
    """The mask that keeps the highest scores when a share `done` of the rounds is over.

    It keeps a share density^done of the weights, `density` being the codec's.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> scores = jnp.arange(64.0).reshape(64, 1)
        >>> [int(tickets(jm.Bitmask(0.25), scores, d, (-2,)).sum()) for d in (0.0, 0.5, 1.0)]
        [64, 32, 16]
    """
    matrix, fold = Fold.from_weight(scores, axes)
    done = jnp.asarray(done, jnp.float32)
    count = lambda size, kept: jnp.round(size * (kept / size) ** done).astype(jnp.int32)
    return fold.unfold(codec.mask(matrix.astype(jnp.float32), count))


def _where(condition: Array, a: Any, b: Any) -> Any:
    """Tree `a` where the condition (a scalar) holds, else tree `b`."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), a, b)
