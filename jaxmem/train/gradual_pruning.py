"""gradual: weights go while training, s(t) = s·(1 − (1 − t)³), by an optax transformation.

Masks live in the optimizer's state, and what the loop adds to the params keeps the dropped weights
at zero: nothing in the loop is called or changed. At the end `jm.encode` by the same plan holds
what is left, exactly.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from ..codecs.sparse import Sparse
from ..core.fold import Fold
from ..core.paths import is_whole, paths
from ..core.usage import summed_axes


class Masks(NamedTuple):
    """The state of `gradual`: steps done, and {path: where weights are kept}."""

    count: Array
    masks: dict[str, Array]


def polynomial(step: Array | int, begin: int, end: int, power: float = 3.0) -> Array:
    """How much of the way is gone, 1 − (1 − t)^power, t from 0 at `begin` to 1 at `end`.

    Zhu and Gupta, 2017 (power 3).

    Example:
        >>> [round(float(polynomial(step, 0, 100)), 3) for step in (0, 10, 50, 100, 200)]
        [0.0, 0.271, 0.875, 1.0, 1.0]
    """
    t = (jnp.asarray(step, jnp.float32) - begin) / max(end - begin, 1)
    return 1 - (1 - jnp.clip(t, 0.0, 1.0)) ** power


def gradual(
    plan: Mapping[str, Sparse],
    *,
    begin: int,
    end: int,
    every: int = 1,
    power: float = 3.0,
    uses: Mapping | None = None,
) -> optax.GradientTransformation:
    """Prunes by magnitude while training: the last of an `optax.chain`.

    `plan` is {path: sparse codec}, as `jm.choose` makes it: the codecs say how many weights of
    which rows, groups or blocks are there at `end`. From step `begin` on, every `every` steps, the
    smallest go; between, and after `end`, what is gone stays at zero. With one step from `begin`
    to `end` this is one-shot pruning before retraining. Zhu and Gupta, 2017.

    Raises:
        TypeError: the plan names a codec that is not sparse.
        ValueError: begin, end and every that are no schedule, or a path that is not there.

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
    check(plan)
    if not 0 <= begin < end or every < 1:
        raise ValueError(f"a schedule wants 0 <= begin < end, every >= 1: {begin, end, every}")

    def init(params):
        return Masks(jnp.zeros((), jnp.int32), whole(plan, params))

    def update(updates, state, params=None):
        need_params(params)
        now = find(plan, optax.apply_updates(params, updates))
        due = (state.count >= begin) & ((state.count - begin) % every == 0)
        due &= state.count < end + every  # then the masks are final
        gone = polynomial(state.count, begin, end, power)
        masks = {}
        for path, codec in plan.items():
            score = jnp.where(state.masks[path], jnp.abs(now[path]), -1.0)
            chosen = lambda c=codec, s=score, p=path: top(c, s, gone, summed_axes(p, uses))
            masks[path] = jax.lax.cond(due, chosen, lambda p=path: state.masks[p])
        return masked(plan, updates, params, masks), Masks(state.count + 1, masks)

    return optax.GradientTransformation(init, update)


def check(plan: Mapping[str, Any]) -> None:
    for path, codec in plan.items():
        if not isinstance(codec, Sparse):
            raise TypeError(f"{path}: a pruner's plan holds sparse codecs, got {codec}")


def need_params(params: Any) -> None:
    if params is None:
        raise ValueError("pruning wants the params: call update(updates, state, params)")


def find(plan: Mapping, tree: Any) -> dict[str, Array]:
    """{path: leaf} of the plan's weights.

    Raises:
        ValueError: a path that is not in the tree.
    """
    leaves = dict(zip(paths(tree), jax.tree.leaves(tree, is_leaf=is_whole)))
    for path in plan:
        if path not in leaves:
            raise ValueError(f"the plan names {path!r}; there are {list(leaves)[:3]}")
    return {path: leaves[path] for path in plan}


def put(tree: Any, new: Mapping[str, Array]) -> Any:
    """The tree with the leaves at the paths of `new` replaced."""
    leaves, structure = jax.tree.flatten(tree, is_leaf=is_whole)
    return structure.unflatten([new.get(path, x) for path, x in zip(paths(tree), leaves)])


def whole(plan: Mapping, params: Any) -> dict[str, Array]:
    """Masks that keep everything."""
    return {path: jnp.ones(w.shape, bool) for path, w in find(plan, params).items()}


def masked(plan: Mapping, updates: Any, params: Any, masks: Mapping[str, Array]) -> Any:
    """The updates, with those that bring a dropped weight to zero."""
    new, old = find(plan, updates), find(plan, params)
    drop = lambda path: jnp.where(masks[path], new[path], -old[path].astype(new[path].dtype))
    return put(updates, {path: drop(path) for path in plan})


def top(codec: Sparse, scores: Array, gone: Array | float, axes: tuple[int, ...]) -> Array:
    """Where a weight's highest scores are, when a share `gone` of what the codec drops is gone."""
    matrix, fold = Fold.from_weight(scores, axes)
    gone = jnp.asarray(gone, jnp.float32)
    count = lambda size, kept: size - jnp.round((size - kept) * gone).astype(jnp.int32)
    return fold.unfold(codec.mask(matrix.astype(jnp.float32), count))
