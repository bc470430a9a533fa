"""LayerwiseUpdate: an optax optimizer that updates some arrays of params, or a layer of each."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Self

import jax
import optax
from jax import Array

from ..core.jaxpr_rewrites import argument_dependencies
from ..core.paths import leaf_paths
from ..optimizers import apply_rounded


@dataclasses.dataclass(frozen=True, eq=False)
class LayerwiseUpdate:
    """An optimizer that treats each array of the params by itself, and so can be run on a few.

    The state is that of the whole params. Of it, each array belongs to one array of the params
    (Adam's moments) or to none (a count); the latter change alike whatever is updated.
    """

    optimizer: optax.GradientTransformation
    params: Any  # structure of the params, an encoded leaf being one leaf
    state: Any  # structure of the optimizer's state
    owners: tuple[int | None, ...]  # for each array of the state, the param that it belongs to
    constant: frozenset  # the arrays of the state that no update changes

    @classmethod
    def of(cls, optimizer: optax.GradientTransformation, params: Any, state: Any) -> Self:
        """The update for params of these shapes, an encoded leaf given by its dense shape.

        Raises:
            ValueError: `state` is not the state of the optimizer for these params, or the update of
                an array reads the gradient of another one.
        """
        names, n_params = leaf_paths(params), len(jax.tree.leaves(params))
        with jax.numpy_dtype_promotion("standard"):
            expected = jax.eval_shape(optimizer.init, params)
            _check_state(expected, state)
            sources = argument_dependencies(optimizer.update, params, state, params)
        n_state = len(jax.tree.leaves(state))
        # For each output, the params whose gradients or values it is computed from.
        of_params = [
            {
                i if i < n_params else i - n_params - n_state
                for i in found
                if not n_params <= i < n_params + n_state
            }
            for found in sources
        ]
        of_state = [
            {i - n_params for i in found if n_params <= i < n_params + n_state} for found in sources
        ]
        for i, read in enumerate(of_params[:n_params]):
            _refuse_others(names, i, read - {i})
        owners = []
        for path, found in zip(leaf_paths(state), of_params[n_params:]):
            if len(found) > 1:
                first, second = sorted(found)[:2]
                _refuse_others(names, first, {second})
            owners.append(next(iter(found), _named(path, names)))
        constant = frozenset(j for j, found in enumerate(of_params[n_params:]) if not found)
        for i, read in enumerate(of_state[:n_params]):
            _refuse_others(names, i, {owners[j] for j in read} - {i, None})
        structures = map(jax.tree.structure, (params, state))
        return cls(optimizer, *structures, tuple(owners), constant)

    def of_params(self, indices: Sequence[int]) -> list[int]:
        """The arrays of the state that belong to the params at `indices`."""
        return [j for j, owner in enumerate(self.owners) if owner in set(indices)]

    def of_layers(self, indices: Sequence[int], state: Sequence[Any], length: int) -> tuple:
        """Of those, (the stacks of `length` layers, the arrays that each layer takes whole).

        Raises:
            ValueError: an array that updates change is no stack of layers.
        """
        mine = self.of_params(indices)
        stacks = [j for j in mine if state[j].shape[:1] == (length,)]
        whole = [j for j in mine if j not in stacks]
        for j in whole:
            if j not in self.constant:
                raise ValueError(
                    f"the state of a stack of {length} layers has shape {state[j].shape}, expected "
                    "a first axis of layers: this optimizer does not treat a layer of a stack as "
                    "it treats the stack"
                )
        return stacks, whole

    def __call__(
        self,
        indices: Sequence[int],
        params: Sequence[Any],
        dense: Sequence[Array],
        grads: Sequence[Array],
        state: dict[int, Array],
        shared: dict[int, Array],
        seed: Array,
    ) -> tuple[list, list, list]:
        """(new params, new state, the new state that belongs to no param).

        Args:
            indices: which leaves of the params these are.
            params: the leaves, or a layer of each, dense or encoded.
            dense: the same as arrays.
            grads: their gradients.
            state: {place: array} of the state that belongs to them.
            shared: {place: array} of the state that belongs to no param.
            seed: of the random bits for rounding.
        """
        by_param = lambda arrays: self._holed(self.params, dict(zip(indices, arrays)))
        holed = self._holed(self.state, state | shared)
        with jax.numpy_dtype_promotion("standard"):
            updates, new = self.optimizer.update(by_param(grads), holed, by_param(dense))
        places = sorted(state | shared)
        by_place = dict(zip(places, jax.tree.leaves(new)))
        for j in places:
            old = (state | shared)[j]
            if (by_place[j].shape, by_place[j].dtype) != (old.shape, old.dtype):
                raise ValueError(
                    f"an update turns state of {old.dtype}{old.shape} into "
                    f"{by_place[j].dtype}{by_place[j].shape}: this optimizer does not treat a "
                    "layer of a stack as it treats the stack"
                )
        new_params = apply_rounded(list(params), jax.tree.leaves(updates), seed)
        return new_params, [by_place[j] for j in state], [by_place[j] for j in shared]

    @staticmethod
    def _holed(structure: Any, arrays: dict[int, Any]) -> Any:
        """The tree with the given leaves, and None for the others."""
        return structure.unflatten([arrays.get(i) for i in range(structure.num_leaves)])


def _named(path: str, names: list[str]) -> int | None:
    """The param whose path ends the path of an array of the state; None for none."""
    ends = [i for i, name in enumerate(names) if name and f"/{path}".endswith(f"/{name}")]
    return max(ends, key=lambda i: len(names[i]), default=None)


def _check_state(expected: Any, state: Any) -> None:
    shapes = lambda tree: [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]
    if jax.tree.structure(expected) != jax.tree.structure(state) or shapes(expected) != shapes(
        state
    ):
        raise ValueError(
            "state['opt'] is not the state of this optimizer for these params, expected that of "
            "jm.train.train_state(params, optimizer)"
        )


def _refuse_others(names: list[str], i: int, others: set[int]) -> None:
    if others:
        raise ValueError(
            f"this optimizer's update of {names[i]!r} reads the gradient of "
            f"{names[min(others)]!r}, which is not known then: pass clip= to released in place of "
            "optax.clip_by_global_norm, and an optimizer that treats each array by itself"
        )
