"""remat: what the backward pass of a stack of layers keeps, chosen from outside the model."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from ..core.lifting import around_scans

NAMES = ("attn_out", "mlp_out")  # what our models tag with `checkpoint_name`
_KINDS = ("none", "full", "dots", "dots_no_batch", "named", "offload", "nested")


@dataclasses.dataclass(frozen=True)
class Remat:
    """A policy as a value.

    none: all that the backward pass wants is kept. full: each layer's input, the rest is computed
    again (Chen et al., 2016). dots, dots_no_batch: results of products, or only of those with
    weights. named: tensors tagged with a name in `names`. offload: those go to host memory, which
    shows in TPU and GPU compiles only. nested: the inputs of √layers groups, and within a group
    of each layer.

    Raises:
        ValueError: an unknown kind, or names where none are wanted.

    Example:
        >>> Remat("named", ("attn_out",))
        Remat(kind='named', names=('attn_out',))
    """

    kind: str = "full"
    names: tuple[str, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "names", tuple(self.names))
        if self.kind not in _KINDS:
            raise ValueError(f"unknown remat {self.kind!r}; expected one of {', '.join(_KINDS)}")
        if bool(self.names) != (self.kind in ("named", "offload")):
            raise ValueError(f"remat {self.kind!r} with names {self.names}: names go with named")

    @property
    def policy(self) -> Callable | None:
        """What `jax.checkpoint` takes as its policy."""
        known = jax.checkpoint_policies
        if self.kind == "named":
            return known.save_only_these_names(*self.names)
        if self.kind == "offload":
            return known.save_and_offload_only_these_names(
                names_which_can_be_saved=[],
                names_which_can_be_offloaded=list(self.names),
                offload_src="device",
                offload_dst="pinned_host",
            )
        dots = {"dots": known.dots_saveable}
        dots["dots_no_batch"] = known.dots_with_no_batch_dims_saveable
        return dots.get(self.kind, known.nothing_saveable)


def remat(fn: Callable, policy: Remat) -> Callable:
    """`fn` whose scans over layers keep for the backward pass what `policy` says.

    The model is not touched: its jaxpr is replayed with each outermost scan's body under
    `jax.checkpoint`. A model that spells its layers out has no scan, and stays as it is.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmem as jm
        >>> layers = lambda w, x: jax.lax.scan(lambda x, w: (jnp.sin(x @ w), None), x, w)[0]
        >>> w, x = jnp.ones((9, 64, 64)), jnp.ones((256, 64))
        >>> temp = lambda fn: jm.memory(jax.grad(lambda w, x: fn(w, x).sum()), w, x).temp
        >>> temp(remat(layers, Remat("full"))) < temp(layers)
        True
    """
    if policy.kind == "none":
        return fn
    once = functools.partial(jax.checkpoint, policy=policy.policy, prevent_cse=False)
    return around_scans(fn, once) if policy.kind != "nested" else around_scans(fn, once, _nested)


def _nested(body: Callable, init: Any, xs: Any, length: int, **how: Any) -> tuple[Any, Any]:
    """The scan as one over groups of about √length layers."""
    size = next(n for n in range(math.isqrt(length), 0, -1) if length % n == 0)
    if size == 1:
        return lax.scan(body, init, xs, length, **how)
    split = lambda x: x.reshape(length // size, size, *x.shape[1:])

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def group(carry, xs):
        return lax.scan(body, carry, xs, size, **how)

    carry, ys = lax.scan(group, init, jax.tree.map(split, xs), length // size, **how)
    return carry, jax.tree.map(lambda y: y.reshape(length, *y.shape[2:]), ys)
