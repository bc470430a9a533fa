"""from_host: a model whose layers lie in host memory, and come to the device one at a time."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

from ..core.scans import around_scans
from .optimizer_state import on_host

_TILE = 32, 128  # of one-byte numbers on a TPU: what a transfer of one layer must be made of


def layers_on_host(params: Any) -> Any:
    """`params` with its stacks of matrices in the pinned memory of their device's host.

    A stack has the layers as its first axis, and its matrices whole tiles of a TPU. Vectors, such
    as scales, and matrices that are no stack stay. Arrays may be abstract, and of encoded leaves.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> params = {"kernel": jnp.ones((4, 64, 128)), "scale": jnp.ones((4, 64))}
        >>> placed = layers_on_host(jax.eval_shape(lambda: params))
        >>> placed["kernel"].sharding.memory_kind, placed["scale"].sharding
        ('pinned_host', None)
    """
    return jax.tree.map(lambda x: on_host(x) if _moves(x) else x, params)


def from_host(fn: Callable) -> Callable:
    """`fn(params, *args)` of params that `layers_on_host` placed: scans fetch layer by layer.

    The model is not touched: its jaxpr is replayed, and each outermost scan over such a stack
    brings the slice that its body wants to the device. To run, not to differentiate.

    Raises:
        ValueError: a stack that no scan reads straight from the params.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> layers = lambda w, x: jax.lax.scan(lambda x, w: (jnp.sin(x @ w), None), x, w)[0]
        >>> w, x = jnp.ones((3, 128, 128)), jnp.ones((2, 128))
        >>> bool((from_host(layers)(layers_on_host(w), x) == layers(w, x)).all())
        True
    """

    @functools.wraps(fn)
    def run(params, *args):
        # an abstract argument's type does not say that it lies on the host, so it is told apart
        stacks = {id(x) for x in jax.tree.leaves(params) if _moves(x)}
        read = set()

        def scan(body, init, xs, length, **how):
            far = [id(x) in stacks for x in xs]
            read.update(id(x) for x in xs)
            host = jax.memory.Space.Host
            xs = [jax.device_put(x, host) if moved else x for x, moved in zip(xs, far)]

            def near(carry, xs):
                return body(carry, [_fetched(x) if moved else x for x, moved in zip(xs, far)])

            return lax.scan(near, init, xs, length, **how)

        y = around_scans(fn, lambda body: body, scan)(params, *args)
        if missed := len(stacks - read):
            raise ValueError(f"no scan reads {missed} of {len(stacks)} stacks on the host")
        return y

    return run


def _fetched(x: jax.Array) -> jax.Array:
    """One layer, laid out as on the host: libtpu dies of a transfer that transposes."""
    here = jax.device_put(x, jax.memory.Space.Device)
    return with_layout_constraint(here, Layout(major_to_minor=tuple(range(x.ndim))))


def _moves(x: Any) -> bool:
    return x.ndim > 2 and not any(n % tile for n, tile in zip(x.shape[-2:], _TILE))
