"""from_host: a model whose layers are in host memory, with one layer at a time on the device."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

from ..core.arguments import NAMES, TREE, takes
from ..core.jaxpr_rewrites import around_scans
from ..core.paths import is_whole, leaf_paths, match
from .optimizer_state import on_host

_ALL = (".*",)
_TILE = 32, 128  # a TPU's tile of one-byte numbers; a layer that is moved must be whole tiles


@takes(params=TREE, only=NAMES)
def layers_on_host(params: Any, *, only: Sequence[str] = _ALL) -> Any:
    """`params` with its stacks of matrices in the pinned memory of their device's host.

    A stack's first axis are the layers. Its matrices must be whole TPU tiles, 32 × 128. Vectors,
    such as scales, and matrices that are no stack stay on the device. Arrays may be abstract, and
    may be inside encoded leaves. `only` are paths or regexes: leaves that none of them matches stay
    on the device, too.

    Raises:
        ValueError: one of `only` matches no leaf, or is no regex.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> params = {"kernel": jnp.ones((4, 64, 128)), "scale": jnp.ones((4, 64))}
        >>> placed = layers_on_host(jax.eval_shape(lambda: params))
        >>> placed["kernel"].sharding.memory_kind, placed["scale"].sharding
        ('pinned_host', None)
    """
    arrays, tree = jax.tree.flatten(params)
    return tree.unflatten(
        [on_host(x) if far else x for x, far in zip(arrays, are_far(params, only))]
    )


@takes(only=NAMES)
def from_host(fn: Callable, *, only: Sequence[str] = _ALL) -> Callable:
    """`fn(params, *args)` for params of `layers_on_host`: its scans fetch one layer at a time.

    `fn` itself does not change: its jaxpr is replayed, and each outermost scan over a stack on the
    host moves one slice at a time to the device. The result cannot be differentiated. `only` is
    what `layers_on_host` was given.

    Raises:
        ValueError: no scan takes a stack on the host directly from the params; one of `only`
            matches no leaf.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> layers = lambda w, x: jax.lax.scan(lambda x, w: (jnp.sin(x @ w), None), x, w)[0]
        >>> w, x = jnp.ones((3, 128, 128)), jnp.ones((2, 128))
        >>> bool((from_host(layers)(layers_on_host(w), x) == layers(w, x)).all())
        True
    """

    @functools.wraps(fn)
    def run(params, *args):
        # The type of a traced argument does not say that it is in host memory: go by its id.
        arrays = jax.tree.leaves(params)
        stacks = {id(x) for x, far in zip(arrays, are_far(params, only)) if far}
        read = set()

        def scan(body, init, xs, length, **options):
            far = [id(x) in stacks for x in xs]
            read.update(id(x) for x in xs)
            host = jax.memory.Space.Host
            xs = [jax.device_put(x, host) if moved else x for x, moved in zip(xs, far)]

            def near(carry, xs):
                return body(carry, [fetched(x) if moved else x for x, moved in zip(xs, far)])

            return lax.scan(near, init, xs, length, **options)

        y = around_scans(fn, lambda body: body, scan)(params, *args)
        if missed := len(stacks - read):
            raise ValueError(f"no scan reads {missed} of {len(stacks)} stacks on the host")
        return y

    return run


def fetched(x: jax.Array) -> jax.Array:
    """One layer on the device, in the host's layout: libtpu aborts if a transfer transposes."""
    layer = jax.device_put(x, jax.memory.Space.Device)
    return with_layout_constraint(layer, Layout(major_to_minor=tuple(range(x.ndim))))


def are_far(params: Any, only: Sequence[str]) -> list[bool]:
    """For each array of `params`, whether it is a stack of a leaf that one of `only` matches."""
    names = leaf_paths(params)
    chosen = match(names, dict.fromkeys(only, True)) if names else {}
    leaves = jax.tree.leaves(params, is_leaf=is_whole)
    pairs = zip(names, leaves)
    return [name in chosen and _moves(x) for name, leaf in pairs for x in jax.tree.leaves(leaf)]


def _moves(x: Any) -> bool:
    """Whether `x` is a stack of matrices of whole tiles."""
    return x.ndim > 2 and not any(n % tile for n, tile in zip(x.shape[-2:], _TILE))
