"""states_from_host: a cache whose layers are in host memory, read and written a layer at a time."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..core.jaxpr_rewrites import around_scans
from .streamed_weights import are_far, fetched


def states_from_host(fn: Callable, *, only: Sequence[str], weights: Sequence[str] = ()) -> Callable:
    """`fn(params, ids, cache, *args) -> (y, cache)` for a cache of `layers_on_host(cache, only=)`.

    Each layer's keys and values come to the device when the layer is computed, and go back with the
    new tokens in them. Of the cache's stacks that `only` matches, one layer is on the device. The
    layers of `fn` are scans that carry the cache, one after the other, as those of the decoders
    here are; its jaxpr is replayed with a cache of one layer for such a stack, on whose first axis
    each index is clamped to that layer. `weights` are stacks of params that are on the host, too
    (see `from_host`).

    Raises:
        ValueError: no scan carries a stack of the cache that is on the host, or some layers of it
            are read by none; one of `only` matches no leaf.
    """

    @functools.wraps(fn)
    def run(params, ids, cache, *args):
        # The type of a traced argument does not say that it is in host memory: go by its id.
        is_weight = are_far(params, weights) if weights else []
        stacks = {id(x) for x, far in zip(jax.tree.leaves(params), is_weight) if far}
        arrays, tree = jax.tree.flatten(cache)
        held = [_Held.of(x) if far else x for x, far in zip(arrays, are_far(cache, only))]
        by_id = {id(x.one_layer): x for x in held if isinstance(x, _Held)}

        def scan(body, init, xs, length, **options):
            far = [id(x) in stacks for x in xs]
            xs = [_to_host(x) if moved else x for x, moved in zip(xs, far)]
            mine = [by_id.get(id(x)) for x in init]
            firsts = [None if one is None else one.layers for one in mine]
            start = [x if one is None else one.stack for x, one in zip(init, mine)]

            def near(carry, inputs):
                i, carry = carry
                layers = [
                    x if first is None else _layer(x, first + i) for x, first in zip(carry, firsts)
                ]
                inputs = [fetched(x) if moved else x for x, moved in zip(inputs, far)]
                new, ys = body(layers, inputs)
                back = [
                    x if first is None else _with_layer(old, x, first + i)
                    for old, x, first in zip(carry, new, firsts)
                ]
                return (i + 1, back), ys

            (_, end), ys = lax.scan(near, (jnp.int32(0), start), xs, length, **options)
            for one, x in zip(mine, end):
                if one is not None:
                    one.stack, one.layers = x, one.layers + length
            return [x if one is None else one.one_layer for x, one in zip(end, mine)], ys

        stand_in = [x.one_layer if isinstance(x, _Held) else x for x in held]
        replayed = around_scans(fn, lambda body: body, scan)
        y, new = replayed(params, ids, tree.unflatten(stand_in), *args)
        out = [by_id[id(x)].stack if id(x) in by_id else x for x in jax.tree.leaves(new)]
        for x in by_id.values():
            x.check()
        return y, tree.unflatten(out)

    return run


@dataclasses.dataclass(eq=False)
class _Held:
    """A stack (layers, ...) on the host, what stands for a layer of it, and layers read so far."""

    stack: Any
    one_layer: Any  # (1, ...)
    layers: int = 0

    @classmethod
    def of(cls, x: jax.Array) -> "_Held":
        return cls(_to_host(x), jnp.zeros((1, *x.shape[1:]), x.dtype))

    def check(self) -> None:
        """Refuses a stack whose layers were not all read."""
        if self.layers != self.stack.shape[0]:
            raise ValueError(
                f"scans carry {self.layers} layers of a stack of {self.stack.shape[0]} on the host"
            )


def _to_host(x: jax.Array) -> jax.Array:
    return jax.device_put(x, jax.memory.Space.Host)


def _layer(stack: jax.Array, i: jax.Array) -> jax.Array:
    """A layer (1, ...) of a stack on the host, on the device.

    The barriers here and below keep XLA from joining these slices of whole layers with those of
    single tokens: libtpu moves slices of one dimension only.
    """
    return lax.optimization_barrier(fetched(lax.dynamic_slice_in_dim(stack, i, 1, 0)))


def _with_layer(stack: jax.Array, layer: jax.Array, i: jax.Array) -> jax.Array:
    """The stack on the host with a layer (1, ...) of the device."""
    return lax.dynamic_update_slice_in_dim(stack, _to_host(lax.optimization_barrier(layer)), i, 0)
