"""weight_roles: of each weight, the axes that its products sum over; none for a vector."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from ..core.leaf import is_encoded
from ..core.paths import check_same_tree, paths
from ..core.usage import PRODUCTS, summed_axes

_VECTOR = re.compile(r"scale|bias|gain|gamma|beta|.*norm.*")  # last names of vectors, also stacked
_HEAD = re.compile(r"(.*[/_])?(head|unembed|unembedding|logits)([/_].*)?")


class Role(NamedTuple):
    """How a weight is read."""

    shape: tuple[int, ...]
    axes: tuple[int, ...]  # summed over by products, from the end; () for a vector
    is_table: bool  # it is only looked up, as an embedding is


def weight_roles(params: Any, uses: Mapping | None) -> dict[str, Role]:
    """{path: role} of every weight.

    A vector is a weight that no product or look-up reads, by `uses` (what `jm.uses` returns), or,
    without it, one of a single axis or with the name of a bias, a scale or a norm. So the vectors
    of a stack of layers are vectors.

    Raises:
        ValueError: the shapes leave open what an array of three axes or more is: pass `uses`; or
            `uses` is of another tree.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"norm": {"scale": jnp.ones((4, 8))}, "up": {"kernel": jnp.ones((4, 8, 16))}}
        >>> [role.axes for role in weight_roles(params, None).values()]
        [(), (-2,)]
    """
    names = paths(params)
    check_same_tree(names, uses=uses)
    leaves = dict(zip(names, jax.tree.leaves(params, is_leaf=is_encoded)))

    def role(path):
        shape = tuple(leaves[path].shape)
        ops = {use.op for use in (uses or {}).get(path, ())}
        if uses is None:
            is_vector = _VECTOR.fullmatch(path.rpartition("/")[2].lower()) is not None
        else:
            is_vector = ops.isdisjoint((*PRODUCTS, "gather"))
        if is_vector or len(shape) < 2:
            return Role(shape, (), False)
        axes = summed_axes(path, uses, leaves)
        return Role(shape, axes, ops.isdisjoint(PRODUCTS) if uses is not None else axes == (-1,))

    return {path: role(path) for path in names}


def head_paths(roles: Mapping[str, Role]) -> list[str]:
    """The weights that make logits, by name; without such a name the tables, tied to the logits.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"embed": {"embedding": jnp.ones((8, 4))}}
        >>> params["head"] = {"kernel": jnp.ones((4, 8))}
        >>> head_paths(weight_roles(params, None))
        ['head/kernel']
        >>> del params["head"]
        >>> head_paths(weight_roles(params, None))
        ['embed/embedding']
    """
    heads = [path for path, role in roles.items() if role.axes and _HEAD.fullmatch(path.lower())]
    is_embedding = lambda path, role: role.is_table or (role.axes and "embed" in path.lower())
    return heads or [path for path, role in roles.items() if is_embedding(path, role)]
