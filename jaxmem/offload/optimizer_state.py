"""streamed: optimizer state in host memory, of which one layer at a time is on the device."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import SingleDeviceSharding


def on_host(tree: Any) -> Any:
    """`tree` with its arrays, abstract or concrete, in the pinned memory of their device's host.

    Scalars stay on the device. A CPU has one memory, so there the bytes count as the device's.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> on_host(jax.ShapeDtypeStruct((8,), jnp.float32)).sharding.memory_kind
        'pinned_host'
    """

    def move(x):
        if not x.ndim:
            return x
        place = getattr(x, "sharding", None) or SingleDeviceSharding(jax.local_devices()[0])
        place = place.with_memory_kind("pinned_host")
        if isinstance(x, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
        return jax.device_put(x, place)

    return jax.tree.map(move, tree)


def streamed(update: Callable, *, far: bool = True) -> Callable:
    """`update(params, state, grads) -> (params, state)` with a `state` in host memory.

    With `far=False` the state stays on the device; only the update's temporaries are limited to one
    layer.

    `params` and `grads` have the same structure, and the arrays of `state`, except scalars, have
    the shapes of the params. `update` must treat each array by itself, as Adam does. Stacks of
    matrices whose first axis are the layers are updated in a loop over the layers, so that the
    state of one layer is on the device at a time. Other arrays are updated outside the loop. Stacks
    of vectors are small and are moved whole: on a TPU one row of two-byte numbers is half a word,
    and no transfer can move half a word.
    """

    def run(params, state, grads):
        # The type of a traced argument does not say that the argument is in host memory.
        state = jax.tree.map(lambda x: _host(x, far and x.ndim > 0), state)
        leaves = jax.tree.leaves(params)
        # The number of layers is the most frequent first axis of stacks of matrices.
        stacks = [x.shape[0] for x in leaves if x.ndim > 2]
        layers = max(set(stacks), key=stacks.count, default=0)
        stacked = lambda x: x.ndim > 2 and x.shape[0] == layers
        trees = (params, state, grads)
        flat, structure = jax.tree.flatten(trees)
        hosted = [far and one for one in _hosted(state, len(leaves), flat, params)]
        inside = [i for i, x in enumerate(flat) if stacked(x)]
        outside = [i for i in range(len(flat)) if i not in inside]
        count = len(leaves), len(jax.tree.leaves(state))

        def change(arrays, chosen):
            """`update` of the chosen arrays and of the scalars; None for the other arrays."""
            keep = set(chosen) | {i for i, x in enumerate(flat) if not x.ndim}
            holes = structure.unflatten([x if i in keep else None for i, x in enumerate(arrays)])
            new = update(*holes)
            full = [None] * len(flat)
            it = iter(jax.tree.leaves(new))
            for i in range(sum(count)):
                if i in keep:
                    full[i] = next(it)
            return full

        def step(i, current):
            layer = list(flat)
            for j, x in zip(inside, current):
                layer[j] = _device(lax.dynamic_index_in_dim(x, i, 0, keepdims=False), hosted[j])
            new = change(layer, inside)
            put = lambda x, y, j: lax.dynamic_update_index_in_dim(x, _host(y, hosted[j]), i, 0)
            return [x if j >= sum(count) else put(x, new[j], j) for j, x in zip(inside, current)]

        # First the arrays outside the loop, then the loop over the layers.
        arrays = [_device(x, hosted[i]) if i in outside else x for i, x in enumerate(flat)]
        new = change(arrays, outside)
        for j in outside:
            if j < sum(count) and flat[j].ndim:
                new[j] = _host(new[j], hosted[j])
        if inside:
            updated = lax.fori_loop(0, layers, step, [flat[j] for j in inside])
            for j, x in zip(inside, updated):
                new[j] = x
        out = structure.unflatten(new[: sum(count)] + flat[sum(count) :])
        return out[0], out[1]

    return run


def _hosted(state: Any, offset: int, flat: list, params: Any) -> list[bool]:
    """For each flat array, whether it is in host memory: the state's arrays, except scalars.

    `flat` are the leaves of (params, state, grads); the state's start at `offset`.
    """
    n = len(jax.tree.leaves(state))
    return [offset <= i < offset + n and x.ndim > 0 for i, x in enumerate(flat)]


def _device(x: Any, hosted: bool) -> Any:
    """`x` moved to device memory if it is in host memory."""
    return jax.device_put(x, jax.memory.Space.Device) if hosted else x


def _host(x: Any, hosted: bool) -> Any:
    """`x` moved to host memory if `hosted`."""
    return jax.device_put(jnp.asarray(x), jax.memory.Space.Host) if hosted else x
