"""remat: which tensors a stack of layers keeps for its backward pass, chosen outside the model."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from ..core.scans import around_scans

NAMES = ("attn_out", "mlp_out")  # tensors that the models here tag by `checkpoint_name`
_KINDS = ("none", "full", "dots", "dots_no_batch", "named", "offload", "nested")


@dataclasses.dataclass(frozen=True)
class Remat:
    """Which tensors of each layer are kept for the backward pass; the others are computed again.

    - none: all tensors that the backward pass needs; nothing is computed again.
    - full: the layer's input (Chen et al., 2016).
    - dots: the results of all matrix products.
    - dots_no_batch: the results of products without batch axes, so of those with weights.
    - named: tensors tagged by `checkpoint_name` with a name in `names`.
    - offload: likewise, but they wait in host memory. Only compiles for a TPU or GPU show this.
    - nested: the inputs of about √layers groups of layers; in the backward pass of a group, the
      inputs of its layers.

    Raises:
        ValueError: `kind` is unknown; `names` is empty for named or offload, or given for others.

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
        """The `policy` of `jax.checkpoint`."""
        policies = jax.checkpoint_policies
        if self.kind == "named":
            return policies.save_only_these_names(*self.names)
        if self.kind == "offload":
            return policies.save_and_offload_only_these_names(
                names_which_can_be_saved=[],
                names_which_can_be_offloaded=list(self.names),
                offload_src="device",
                offload_dst="pinned_host",
            )
        dots = {"dots": policies.dots_saveable}
        dots["dots_no_batch"] = policies.dots_with_no_batch_dims_saveable
        return dots.get(self.kind, policies.nothing_saveable)


def remat(fn: Callable, policy: Remat) -> Callable:
    """`fn` with `policy` applied to each of its outermost scans, which run over layers.

    The model itself does not change: its jaxpr is replayed with the body of each outermost scan
    under `jax.checkpoint`. A model whose layers are not in a scan is returned as it is.

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
    checkpointed = functools.partial(jax.checkpoint, policy=policy.policy, prevent_cse=False)
    replacement = (_nested,) if policy.kind == "nested" else ()
    return around_scans(fn, checkpointed, *replacement)


def _nested(body: Callable, init: Any, xs: Any, length: int, **options: Any) -> tuple[Any, Any]:
    """The scan of `lax.scan`'s arguments, as a scan over groups of about √length layers."""
    size = next(n for n in range(math.isqrt(length), 0, -1) if length % n == 0)
    if size == 1:
        return lax.scan(body, init, xs, length, **options)
    split = lambda x: x.reshape(length // size, size, *x.shape[1:])

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def group(carry, xs):
        return lax.scan(body, carry, xs, size, **options)

    carry, ys = lax.scan(group, init, jax.tree.map(split, xs), length // size, **options)
    return carry, jax.tree.map(lambda y: y.reshape(length, *y.shape[2:]), ys)
