"""Places: where the arrays of a step lie on a mesh of one axis, "chips"."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec


@dataclasses.dataclass(frozen=True)
class Places:
    """Where arrays lie on a mesh of one axis: each on its largest axis that the chips divide."""

    mesh: Any
    count: int
    shared: bool  # of weights

    def put(self, x: Any, axis: int | None) -> Any:
        """An abstract array split along an axis; whole on each chip where it is None."""
        if self.mesh is None:
            return x
        spec = PartitionSpec(*(["chips" if i == axis else None for i in range(x.ndim)]))
        where = NamedSharding(self.mesh, spec)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

    def shard(self, tree: Any) -> Any:
        """Every array split along the largest axis that the chips divide."""

        def one(x):
            fits = [i for i in range(x.ndim) if x.shape[i] % self.count == 0]
            inner = [i for i in fits if i or x.ndim < 3] or fits  # not the stack of layers
            return self.put(x, max(inner, key=lambda i: x.shape[i], default=None))

        return jax.tree.map(one, tree)

    def weights(self, tree: Any) -> Any:
        """Weights split or whole on each chip, as the recipe says."""
        return self.shard(tree) if self.shared else jax.tree.map(lambda x: self.put(x, None), tree)

    def kept(self, tree: Any, *, whole: bool = False) -> Any:
        """The results of a step where its arguments were, if the weights' place is not theirs."""
        if self.mesh is None or self.shared:
            return tree
        place = jax.tree.map(lambda x: self.put(x, None), tree) if whole else self.shard(tree)
        constrain = lambda x, at: jax.lax.with_sharding_constraint(x, at.sharding)
        return jax.tree.map(constrain, tree, place)

    def heads(self, cache: Any) -> Any:
        """(layers, batch, heads, ...) by heads; beside whole weights by rows, if those divide."""
        order = (2, 1) if self.shared else (1, 2)
        axis = lambda x: next((i for i in order if x.shape[i] % self.count == 0), None)
        return jax.tree.map(lambda x: self.put(x, axis(x)), cache)

    def rows(self, shape: tuple[int, ...], dtype: Any) -> Any:
        """An abstract array split by rows, if the chips divide those."""
        x = jax.ShapeDtypeStruct(shape, dtype)
        return self.put(x, 0 if shape[0] % self.count == 0 else None)

    def constrain(self, x: Array) -> Array:
        """Activations (rows, tokens, width) kept split by rows."""
        if self.mesh is None or x.ndim != 3 or x.shape[0] % self.count:
            return x
        where = NamedSharding(self.mesh, PartitionSpec("chips", None, None))
        return jax.lax.with_sharding_constraint(x, where)

    def constrained(self, body: Callable) -> Callable:
        """A scan's body whose activations stay sharded by rows; else they would be replicated."""

        def run(carry, xs):
            carry, ys = body(jax.tree.map(self.constrain, carry), xs)
            return jax.tree.map(self.constrain, carry), ys

        return run if self.mesh is not None else body
