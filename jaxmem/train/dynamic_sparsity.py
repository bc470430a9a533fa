"""rigl, evolve: a fixed number of weights, some of which move to where they are worth more.

Every few steps a share α/2 · (1 + cos(π·t/end)) of each row's kept weights, the smallest, goes, and
as many come back as zeros elsewhere.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from ..codecs.sparse import Sparse
from ..core.fold import Fold
from ..core.usage import summed_axes
from .gradual_pruning import check, find, masked, need_params, put, top


class Moving(NamedTuple):
    """The state of `rigl` and `evolve`: steps done, the optimizer's state, {path: mask}, a key."""

    count: Array
    inner: Any
    masks: dict[str, Array]
    key: Array


def rigl(
    inner: optax.GradientTransformation,
    plan: Mapping[str, Sparse],
    *,
    every: int = 100,
    end: int = 10_000,
    share: float = 0.3,
    uses: Mapping | None = None,
) -> optax.GradientTransformation:
    """Trains sparse from the first step; weights come back where the gradient is largest.

    Wraps the optimizer, since it wants the gradient itself, of the dropped weights too. The masks
    begin with the largest of the initial weights; until `end` they move every `every` steps,
    `share` of them at first. The optimizer sees no gradient of a dropped weight. Evci et al., 2020.

    Raises:
        TypeError: the plan names a codec that is not sparse.
        ValueError: a share outside 0 to 1, or steps that are no schedule.

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
    """Sparse evolutionary training: as `rigl`, but weights come back anywhere.

    Mocanu et al., 2018 (SET).

    Raises:
        TypeError: the plan names a codec that is not sparse.
        ValueError: a share outside 0 to 1, or steps that are no schedule.

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
    inner, plan, grow: Callable[[Array, Array], Array], every, end, share, uses, seed
) -> optax.GradientTransformation:
    check(plan)
    if not 0 < share < 1:
        raise ValueError(f"the share of weights that move lies between 0 and 1, got {share}")
    if every < 1 or end < every:
        raise ValueError(f"a schedule wants 1 <= every <= end, got every={every}, end={end}")
    axes = {path: summed_axes(path, uses) for path in plan}

    def init(params):
        own = find(plan, params)
        masks = {p: top(codec, jnp.abs(own[p]), 1.0, axes[p]) for p, codec in plan.items()}
        return Moving(
            jnp.zeros((), jnp.int32),
            inner.init(params),
            masks,
            jax.random.key_data(jax.random.key(seed)),
        )

    def update(gradients, state, params=None):
        need_params(params)
        slopes, weights = find(plan, gradients), find(plan, params)
        count = state.count + 1
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), count)
        moving = share / 2 * (1 + jnp.cos(jnp.pi * count.astype(jnp.float32) / end))
        masks = {}
        for i, (path, codec) in enumerate(plan.items()):
            own = jnp.abs(weights[path]), grow(slopes[path], jax.random.fold_in(key, i))
            move = lambda c=codec, own=own, p=path: _moved(c, state.masks[p], *own, moving, axes[p])
            due = (count % every == 0) & (count < end)
            masks[path] = jax.lax.cond(due, move, lambda p=path: state.masks[p])
        seen = {p: jnp.where(masks[p], slopes[p], 0) for p in plan}
        updates, after = inner.update(put(gradients, seen), state.inner, params)
        stays = {p: masks[p] & state.masks[p] for p in plan}  # what comes back begins at zero
        return masked(plan, updates, params, stays), Moving(count, after, masks, state.key)

    return optax.GradientTransformation(init, update)


def _moved(codec: Sparse, mask, size, worth, share, axes) -> Array:
    """The mask with `share` of the kept weights of each run dropped, and as many others kept."""
    fold_of = lambda a: Fold.from_weight(a, axes)[0]
    fold = Fold.from_weight(mask, axes)[1]
    there = fold_of(mask)
    moved = lambda whole, kept: jnp.minimum(jnp.round(share * kept), whole - kept).astype(jnp.int32)
    left = lambda whole, kept: kept - moved(whole, kept)
    stays = codec.mask(jnp.where(there, fold_of(size), -1.0), left)
    back = codec.mask(jnp.where(there, -1.0, fold_of(worth)), moved)
    return fold.unfold(stays | back)
