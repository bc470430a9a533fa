"""LookedUp: a table of embeddings in which a look-up of a text's tokens finds vectors of our own.

So any model can be asked for the gradient by its input vectors, without a change of its code: the
leaf stands in the place of the table, under `lift`. What else reads the table, such as a tied head,
reads the table itself.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ..core.leaf import Encoded, is_encoded
from ..core.lifting import lift
from ..core.paths import leaf_paths
from ..core.usage import uses
from ..models.model import Model


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LookedUp(Encoded):
    """`table` (vocab, d), dense or encoded, and the `vectors` (B, T, d) that ids (B, T) find.

    Example:
        >>> leaf = LookedUp(jnp.zeros((8, 2)), jnp.ones((1, 3, 2)))
        >>> leaf.take(jnp.array([[4, 5, 6]])).sum().item(), leaf.decode().sum().item()
        (6.0, 0.0)
    """

    table: Any
    vectors: Array

    shape = property(lambda self: self.table.shape)
    dtype = property(lambda self: self.table.dtype)

    def decode(self) -> Array:
        return self.table.decode() if is_encoded(self.table) else self.table

    def astype(self, dtype: Any) -> "LookedUp":
        return LookedUp(self.table.astype(dtype), self.vectors.astype(dtype))

    def take(self, rows: Array) -> Array:
        if rows.size * self.vectors.shape[-1] != self.vectors.size:
            raise ValueError(
                f"ids of shape {rows.shape} are looked up, expected {self.vectors.shape[:-1]}"
            )
        return self.vectors.reshape(*rows.shape, -1)


def table_path(model: Model) -> str:
    """The path of the table that a model looks its tokens up in.

    Raises:
        ValueError: no weight or several are looked up by the ids.
    """
    shapes = jax.eval_shape(lambda: jnp.zeros((1, 8), jnp.int32))
    inputs = (shapes,) if hasattr(model.config, "cache") else (shapes, _mask(shapes))
    looked_up = uses(model.apply, model.params, *inputs)
    found = [
        path
        for path, leaf in zip(
            leaf_paths(model.params), jax.tree.leaves(model.params, is_leaf=is_encoded)
        )
        if leaf.shape[:1] == (model.config.vocab,)
        and any(use.op == "gather" for use in looked_up.get(path, ()))
    ]
    if len(found) != 1:
        raise ValueError(f"{model.source} looks its tokens up in {found}, expected one table")
    return found[0]


def with_vectors(params: Any, path: str, vectors: Array) -> Any:
    """The params in which the tokens of ids (B, T) have the `vectors` (B, T, d).

    Example:
        >>> tree = with_vectors({"embed": jnp.zeros((8, 2))}, "embed", jnp.ones((1, 3, 2)))
        >>> lift(lambda tree, ids: tree["embed"][ids])(tree, jnp.arange(3)[None]).sum().item()
        6.0
    """
    leaves, tree = jax.tree.flatten(params, is_leaf=is_encoded)
    at = leaf_paths(params).index(path)
    leaves[at] = LookedUp(leaves[at], vectors)
    return tree.unflatten(leaves)


def rows_at(params: Any, path: str, ids: Any) -> Array:
    """The vectors (..., d) that ids (...) have in the table at `path`, as they are decoded."""
    leaves = jax.tree.leaves(params, is_leaf=is_encoded)
    return lift(lambda table, ids: table[ids])(leaves[leaf_paths(params).index(path)], ids)


def _mask(ids: Any) -> Any:
    return jax.ShapeDtypeStruct(ids.shape, bool)
