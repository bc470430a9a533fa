"""rigl, evolve: a fixed number of weights, a few of which are exchanged while training.

Every few steps a share α/2 · (1 + cos(π·t/end)) of each row's kept weights, the smallest, are
dropped, and as many dropped weights of the row are kept instead, from zero.
"""

from collections.abc import Callable, Mapping
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
    mask_updates,
    planned_axes,
    planned_leaves,
    replace_leaves,
    require_params,
    top_mask,
)


class Moving(NamedTuple):
    """The state of `rigl` and `evolve`: steps done, optimizer's state, {path: mask}, key data."""

    count: Array
    inner: Any
    masks: dict[str, Array]
    key: Array


@takes()
def rigl(
    inner: optax.GradientTransformation,
    plan: Mapping[str, Sparse],
    *,
    every: int = 100,
    end: int = 10_000,
    share: float = 0.3,
    uses: Mapping | None = None,
) -> optax.GradientTransformation:
    """Trains sparse from the first step; weights are regrown where the gradient is largest.

    The masks begin with the largest of the initial weights. This wraps the optimizer instead of
    following it in a chain, because it needs the gradient of the dropped weights too; the optimizer
    is given zeros for these. Evci et al., 2020.

    Args:
        inner: the optimizer.
        plan: {path: sparse codec}; the codecs say how many weights are kept.
        every: steps between two exchanges.
        end: the step from which masks stay.
        share: the share α of kept weights that the first exchange drops; it falls as a cosine.
        uses: what `jm.uses` returns: which axes a weight is summed over; None: over axis −2.

    Raises:
        TypeError: `plan` names a codec that is not sparse.
        ValueError: `share` is outside 0 to 1, or `every` and `end` are no schedule.

    Example:
        >>> import jax, jax.numpy as jnp, optax, jaxmem as jm
        >>> params = {"w": jnp.tile(jnp.array([[3.0], [2.0], [1.0], [0.5]]), (1, 2))}
        >>> tx = rigl(optax.sgd(0.1), {"w": jm.Bitmask(0.5)}, every=1, end=100, share=0.5)
        >>> slope = {"w": jnp.tile(jnp.array([[0.0], [0.0], [0.1], [-5.0]]), (1, 2))}
        >>> updates, state = tx.update(slope, tx.init(params), params)
        >>> (params["w"] + updates["w"])[:, 0].tolist(), state.masks["w"][:, 0].tolist()
        ([3.0, 0.0, 0.0, 0.0], [True, False, False, True])
    """
    grow = lambda gradient, key: jnp.abs(gradient)
    return _moving(inner, plan, grow, every, end, share, uses, 0)


@takes()
def evolve(
    inner: optax.GradientTransformation,
    plan: Mapping[str, Sparse],
    *,
    every: int = 100,
    end: int = 10_000,
    share: float = 0.3,
    seed: int = 0,
    uses: Mapping | None = None,
) -> optax.GradientTransformation:
    """Sparse evolutionary training: as `rigl`, but weights are regrown at random.

    Mocanu et al., 2018 (SET).

    Args:
        inner: the optimizer.
        plan: {path: sparse codec}; the codecs say how many weights are kept.
        every: steps between two exchanges.
        end: the step from which masks stay.
        share: the share α of kept weights that the first exchange drops; it falls as a cosine.
        seed: of the random choices.
        uses: what `jm.uses` returns: which axes a weight is summed over; None: over axis −2.

    Raises:
        TypeError: `plan` names a codec that is not sparse.
        ValueError: `share` is outside 0 to 1, or `every` and `end` are no schedule.

    Example:
        >>> import jax, jax.numpy as jnp, optax, jaxmem as jm
        >>> params = {"w": jax.random.normal(jax.random.key(0), (64, 4))}
        >>> tx = evolve(optax.sgd(0.1), {"w": jm.Bitmask(0.25)}, every=1, end=10)
        >>> state = tx.init(params)
        >>> _, later = tx.update(params, state, params)
        >>> [int(s.masks["w"].sum()) for s in (state, later)]
        [64, 64]
        >>> bool((state.masks["w"] == later.masks["w"]).all())
        False
    """
    grow = lambda gradient, key: jax.random.uniform(key, gradient.shape)
    return _moving(inner, plan, grow, every, end, share, uses, seed)


def _moving(
    inner: optax.GradientTransformation,
    plan: Mapping[str, Sparse],
    grow: Callable[[Array, Array], Array],
    every: int,
    end: int,
    share: float,
    uses: Mapping | None,
    seed: int,
) -> optax.GradientTransformation:
    """The optimizer with moving masks; `grow(gradient, key)` scores the weights to regrow."""
    check_sparse(plan)
    if not 0 < share < 1:
        raise ValueError(f"the share of weights that move lies between 0 and 1, got {share}")
    if every < 1 or end < every:
        raise ValueError(f"a schedule wants 1 <= every <= end, got every={every}, end={end}")

    def init(params):
        weights, axes = planned_leaves(plan, params), planned_axes(plan, params, uses)
        masks = {p: top_mask(codec, jnp.abs(weights[p]), 1.0, axes[p]) for p, codec in plan.items()}
        return Moving(
            jnp.zeros((), jnp.int32),
            inner.init(params),
            masks,
            jax.random.key_data(jax.random.key(seed)),
        )

    def update(gradients, state, params=None):
        require_params(params)
        grads, weights = planned_leaves(plan, gradients), planned_leaves(plan, params)
        axes, count = planned_axes(plan, params, uses), state.count + 1
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), count)
        # move the masks, if it is time
        moving = share / 2 * (1 + jnp.cos(jnp.pi * count.astype(jnp.float32) / end))
        masks = {}
        for i, (path, codec) in enumerate(plan.items()):
            scores = jnp.abs(weights[path]), grow(grads[path], jax.random.fold_in(key, i))
            move = lambda c=codec, s=scores, p=path: _moved(c, state.masks[p], *s, moving, axes[p])
            due = (count % every == 0) & (count < end)
            masks[path] = jax.lax.cond(due, move, lambda p=path: state.masks[p])
        # a step of the optimizer, without gradients of dropped weights
        masked = {p: jnp.where(masks[p], grads[p], 0) for p in plan}
        updates, inner_state = inner.update(replace_leaves(gradients, masked), state.inner, params)
        unchanged = {p: masks[p] & state.masks[p] for p in plan}  # a regrown weight begins at zero
        return mask_updates(plan, updates, params, unchanged), Moving(
            count, inner_state, masks, state.key
        )

    return optax.GradientTransformation(init, update)


def _moved(
    codec: Sparse, mask: Array, magnitude: Array, growth: Array, share: Array, axes: tuple
) -> Array:
    """The mask with `share` of the kept weights dropped, and as many dropped weights kept.

    `mask`, `magnitude` and `growth` (the scores for regrowing) have the weight's shape, and `axes`
    are its summed axes.
    """
    to_matrix = lambda a: Fold.from_weight(a, axes)[0]
    fold = Fold.from_weight(mask, axes)[1]
    kept_now = to_matrix(mask)
    # Of `size` weights that compete, the codec keeps `kept`; these are the shares that move.
    moved = lambda size, kept: jnp.minimum(jnp.round(share * kept), size - kept).astype(jnp.int32)
    unmoved = lambda size, kept: kept - moved(size, kept)
    stays = codec.mask(jnp.where(kept_now, to_matrix(magnitude), -1.0), unmoved)
    regrown = codec.mask(jnp.where(kept_now, -1.0, to_matrix(growth)), moved)
    return fold.unfold(stays | regrown)
