"""Masks of weights that are pruned while training: which weights a plan names, keeps and drops."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ..codecs.sparse import Sparse
from ..core.fold import Fold
from ..core.paths import check_same_tree, is_whole, paths
from ..core.usage import summed_axes


def check_sparse(plan: Mapping[str, Any]) -> None:
    """Raises TypeError if the plan names a codec that is not sparse."""
    for path, codec in plan.items():
        if not isinstance(codec, Sparse):
            raise TypeError(f"{path}: a pruner's plan holds sparse codecs, got {codec}")


def require_params(params: Any) -> None:
    """Raises ValueError if an update was called without params."""
    if params is None:
        raise ValueError("pruning wants the params: call update(updates, state, params)")


def planned_leaves(plan: Mapping, tree: Any) -> dict[str, Array]:
    """{path: leaf} of the weights that the plan names.

    Raises:
        ValueError: the plan names a path that is not in the tree.
    """
    leaves = dict(zip(paths(tree), jax.tree.leaves(tree, is_leaf=is_whole)))
    for path in plan:
        if path not in leaves:
            raise ValueError(f"the plan names {path!r}; there are {list(leaves)[:3]}")
    return {path: leaves[path] for path in plan}


def planned_axes(plan: Mapping, params: Any, uses: Mapping | None) -> dict[str, tuple[int, ...]]:
    """{path: the axes that a weight of the plan is summed over}, the same as `encode` takes."""
    leaves = dict(zip(paths(params), jax.tree.leaves(params, is_leaf=is_whole)))
    check_same_tree(leaves, uses=uses)
    known = getattr(plan, "axes", None)
    return {path: summed_axes(path, uses, leaves, known) for path in plan}


def replace_leaves(tree: Any, new: Mapping[str, Array]) -> Any:
    """The tree with the leaves at the paths of `new` replaced."""
    leaves, structure = jax.tree.flatten(tree, is_leaf=is_whole)
    return structure.unflatten([new.get(path, x) for path, x in zip(paths(tree), leaves)])


def full_masks(plan: Mapping, params: Any) -> dict[str, Array]:
    """{path: mask that keeps every weight}."""
    return {path: jnp.ones(w.shape, bool) for path, w in planned_leaves(plan, params).items()}


def top_mask(codec: Sparse, scores: Array, progress: Array | float, axes: tuple) -> Array:
    """The mask that keeps a weight's highest scores, part of the way to the codec's density.

    `scores` has the weight's shape and `axes` are its summed axes. With `progress` 0 every weight
    is kept, with 1 as many as the codec keeps.
    """
    matrix, fold = Fold.from_weight(scores, axes)
    progress = jnp.asarray(progress, jnp.float32)
    count = lambda size, kept: size - jnp.round((size - kept) * progress).astype(jnp.int32)
    return fold.unfold(codec.mask(matrix.astype(jnp.float32), count))


def mask_updates(plan: Mapping, updates: Any, params: Any, masks: Mapping[str, Array]) -> Any:
    """The updates, except that each dropped weight's update brings it to zero."""
    new, old = planned_leaves(plan, updates), planned_leaves(plan, params)
    drop = lambda path: jnp.where(masks[path], new[path], -old[path].astype(new[path].dtype))
    return replace_leaves(updates, {path: drop(path) for path in plan})
