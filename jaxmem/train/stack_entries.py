"""Entries of stacks: one of each array of a tree, read or replaced where its index is traced."""

from typing import Any

import jax
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint


def entry(tree: Any, i: Any) -> Any:
    """Entry `i` of the first axis of each array; the first one where `i` is None.

    Example:
        >>> import jax.numpy as jnp
        >>> entry({"w": jnp.arange(6).reshape(3, 2)}, 1)["w"].tolist()
        [2, 3]
    """
    if i is None:
        return jax.tree.map(lambda x: x[0], tree)
    return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, i, 0, keepdims=False), tree)


def with_entry(tree: Any, entries: Any, i: Any) -> Any:
    """The arrays with their entry `i` replaced; where `i` is None, it is their only one.

    Example:
        >>> import jax.numpy as jnp
        >>> with_entry(jnp.zeros((3, 2)), jnp.ones(2), 2).tolist()
        [[0.0, 0.0], [0.0, 0.0], [1.0, 1.0]]
    """
    if i is None:
        return jax.tree.map(lambda x: x[None], entries)
    put = lambda x, new: lax.dynamic_update_index_in_dim(x, new, i, 0)
    return jax.tree.map(put, tree, entries)


def row_major(tree: Any) -> Any:
    """The arrays in the layout of arguments: XLA then lays no whole stack out anew for a loop.

    Example:
        >>> import jax.numpy as jnp
        >>> row_major({"w": jnp.ones((2, 3))})["w"].shape
        (2, 3)
    """
    pin = lambda x: with_layout_constraint(x, Layout(major_to_minor=tuple(range(x.ndim))))
    return jax.tree.map(pin, tree)
