"""gradual: weights are pruned while training, s(t) = s · (1 − (1 − t)³), by optax.

The masks are in the optimizer's state, and the updates keep dropped weights at zero, so that the
training loop does not change. At the end `jm.encode` by the same plan holds exactly the weights
that are left.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from ..codecs.sparse import Sparse
from ..core.arguments import AT_LEAST_0, INTEGER, Kind, takes
from .pruning_masks import (
    check_sparse,
    full_masks,
    mask_updates,
    planned_axes,
    planned_leaves,
    require_params,
    top_mask,
)


class Masks(NamedTuple):
    """The state of `gradual`: the number of steps done, and {path: mask of the kept weights}."""

    count: Array
    masks: dict[str, Array]


_STEP = Kind("an int, or an array of steps", lambda x: INTEGER.accepts(x) or hasattr(x, "shape"))


@takes(step=_STEP, power=AT_LEAST_0)
def polynomial(step: Array | int, begin: int, end: int, power: float = 3.0) -> Array:
    """The schedule's progress, 1 − (1 − t)^power, with t from 0 at step `begin` to 1 at `end`.

    Zhu and Gupta, 2017 (power 3).

    Raises:
        ValueError: `end` is before `begin`, or `begin` before 0.

    Example:
        >>> [round(float(polynomial(step, 0, 100)), 3) for step in (0, 10, 50, 100, 200)]
        [0.0, 0.271, 0.875, 1.0, 1.0]
    """
    if not 0 <= begin <= end:
        raise ValueError(f"begin is {begin} and end {end}, expected 0 <= begin <= end")
    t = (jnp.asarray(step, jnp.float32) - begin) / max(end - begin, 1)
    return 1 - (1 - jnp.clip(t, 0.0, 1.0)) ** power


@takes(power=AT_LEAST_0)
def gradual(
    plan: Mapping[str, Sparse],
    *,
    begin: int,
    end: int,
    every: int = 1,
    power: float = 3.0,
    uses: Mapping | None = None,
) -> optax.GradientTransformation:
    """Prunes by magnitude while training: the last transformation of an `optax.chain`.

    Every `every` steps from `begin` to `end` the smallest weights are dropped. A dropped weight
    stays at zero. With one step from `begin` to `end` this is one-shot pruning before retraining.
    Zhu and Gupta, 2017.

    Args:
        plan: {path: sparse codec}, as `jm.choose` makes it. The codecs say how many weights of
            which rows, groups or blocks are kept at `end`.
        begin: the first step that drops weights.
        end: the step at which the codecs' density is reached.
        every: steps between two choices of weights.
        power: of the schedule, see `polynomial`.
        uses: what `jm.uses` returns: which axes a weight is summed over; None: over axis −2.

    Raises:
        TypeError: `plan` names a codec that is not sparse.
        ValueError: `begin`, `end` and `every` are no schedule; `plan` names a path that is not in
            the params.

    Example:
        >>> import jax, jax.numpy as jnp, optax, jaxmem as jm
        >>> params = {"w": jax.random.normal(jax.random.key(0), (32, 8))}
        >>> x = jax.random.normal(jax.random.key(1), (64, 32))
        >>> plan = jm.choose(params, {"w": jm.Bitmask(0.25)})
        >>> tx = optax.chain(optax.sgd(1.0, 0.9), gradual(plan, begin=10, end=50, every=10))
        >>> loss = lambda p: ((x @ p["w"] - x[:, :8]) ** 2).mean()
        >>> @jax.jit
        ... def step(params, state):
        ...     updates, state = tx.update(jax.grad(loss)(params), state, params)
        ...     return optax.apply_updates(params, updates), state
        >>> state = tx.init(params)
        >>> for _ in range(60):
        ...     params, state = step(params, state)
        >>> float((params["w"] != 0).mean())
        0.25
        >>> bool((jm.decode(jm.encode(params, plan))["w"] == params["w"]).all())
        True
    """
    check_sparse(plan)
    if not 0 <= begin < end or every < 1:
        raise ValueError(f"a schedule wants 0 <= begin < end, every >= 1: {begin, end, every}")

    def init(params):
        return Masks(jnp.zeros((), jnp.int32), full_masks(plan, params))

    def update(updates, state, params=None):
        require_params(params)
        new = planned_leaves(plan, optax.apply_updates(params, updates))
        due = (state.count >= begin) & ((state.count - begin) % every == 0)
        due &= state.count < end + every  # after that the masks are final
        progress = polynomial(state.count, begin, end, power)
        axes, masks = planned_axes(plan, params, uses), {}
        for path, codec in plan.items():
            score = jnp.where(state.masks[path], jnp.abs(new[path]), -1.0)
            chosen = lambda c=codec, s=score, p=path: top_mask(c, s, progress, axes[p])
            masks[path] = jax.lax.cond(due, chosen, lambda p=path: state.masks[p])
        return mask_updates(plan, updates, params, masks), Masks(state.count + 1, masks)

    return optax.GradientTransformation(init, update)
