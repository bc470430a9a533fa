"""remat: which tensors a stack of layers keeps for its backward pass, chosen outside the model."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from ..core import arguments
from ..core.arguments import check_fields, takes
from ..core.repeated_layers import Segment
from ..core.traced_function import Traced
from .held_residuals import hold
from .residual_codec import HELD

NAMES = ("attn_out", "mlp_out")  # tensors that the models here tag by `checkpoint_name`
_KINDS = ("none", "full", "dots", "dots_no_batch", "named", "offload", "nested")


@dataclasses.dataclass(frozen=True)
class Remat:
    """Which tensors of each layer are kept for the backward pass, and how; others are recomputed.

    - none: all tensors that the backward pass needs; nothing is computed again.
    - full: the layer's input (Chen et al., 2016).
    - dots: the results of all matrix products.
    - dots_no_batch: the results of products without batch axes, so of those with weights.
    - named: tensors tagged by `checkpoint_name` with a name in `names`.
    - offload: likewise, but they wait in host memory. Only compiles for a TPU or GPU show this.
    - nested: the inputs of about √layers groups of layers; in the backward pass of a group, the
      inputs of its layers.

    `held` says how the kept tensors of a scan over layers wait for the backward pass:

    - None: as they are.
    - int8: floats as 8-bit codes with an f32 scale for each of up to 128 numbers of a row, rounded
      stochastically: about .52 of the bytes of bfloat16. Booleans take a bit.
    - int4: likewise 4 bits, and 64 numbers: about .28. Its noise is large where layers are computed
      again from rounded tensors, so use it with "none".
    - host: in host memory. Only compiles for a TPU or GPU show this.

    With "none", all that reads a rounded tensor is linear, so gradients are unbiased; where layers
    are computed again from rounded tensors, they are so to first order. Tensors that exp, a
    comparison or the like reads stay exact, and so do rows shorter than 16. Weights are never
    rounded. Chen et al., 2021 (ActNN) round so.

    Raises:
        ValueError: `kind` or `held` is unknown; `names` is empty for named or offload, or given for
            others; `held` is given for offload or nested.

    Example:
        >>> Remat("named", ("attn_out",))
        Remat(kind='named', names=('attn_out',), held=None)
    """

    kind: str = "full"
    names: tuple[str, ...] = ()
    _: dataclasses.KW_ONLY
    held: str | None = None

    def __post_init__(self):
        check_fields(self, names=arguments.NAMES)
        object.__setattr__(self, "names", tuple(self.names))
        if self.kind not in _KINDS:
            raise ValueError(f"unknown remat {self.kind!r}; expected one of {', '.join(_KINDS)}")
        if bool(self.names) != (self.kind in ("named", "offload")):
            raise ValueError(f"remat {self.kind!r} with names {self.names}: names go with named")
        if self.held is not None and self.held not in HELD:
            raise ValueError(f"held is {self.held!r}, expected one of {', '.join(HELD)}, or None")
        if self.held and self.kind in ("offload", "nested"):
            raise ValueError(
                f"remat {self.kind!r} with held {self.held!r}: expected none, full, dots, "
                "dots_no_batch or named"
            )

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


@takes()
def remat(fn: Callable, policy: Remat) -> Callable:
    """`fn` with `policy` applied to each of its layers, those of a scan or of a Python loop.

    The model itself does not change: its jaxpr is replayed with each layer under `jax.checkpoint`.
    The layers are the bodies of the outermost scans over weights. Where there is no such scan, they
    are operations with matrix products that repeat, as those of a Python loop do; with "nested",
    groups of about √layers of them. XLA's CPU compiler undoes any `jax.checkpoint` that is in no
    scan, so that a Python loop takes less memory on TPUs and GPUs only.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmem as jm
        >>> layers = lambda w, x: jax.lax.scan(lambda x, w: (jnp.sin(x @ w), None), x, w)[0]
        >>> w, x = jnp.ones((9, 64, 64)), jnp.ones((256, 64))
        >>> temp = lambda fn: jm.memory(jax.grad(lambda w, x: fn(w, x).sum()), w, x).temp
        >>> temp(remat(layers, Remat("full"))) < temp(layers)
        True

    Raises:
        ValueError: when `fn` is called: no layers are found, or a name of the policy is on no
            tensor.
        NotImplementedError: when `fn` is called: the policy has `held`, and no scan is over layers.
    """
    if policy.kind == "none" and policy.held is None:
        return fn
    checkpoint = functools.partial(jax.checkpoint, policy=policy.policy)
    in_scan = functools.partial(checkpoint, prevent_cse=False)
    if policy.held:
        keeping = (lambda fn: fn) if policy.kind == "none" else in_scan
        in_scan = functools.partial(hold, held=policy.held, checkpoint=keeping)
    replacement = (_nested,) if policy.kind == "nested" else ()

    @functools.wraps(fn)
    def with_policy(*args, **kwargs):
        traced = Traced.of(fn, *args, **kwargs)
        missing = set(policy.names) - traced.names
        if missing:
            tags = ", ".join(sorted(traced.names)) or "none"
            raise ValueError(f"no tensor has the name {missing.pop()!r}, expected one of: {tags}")
        if traced.scans_weights or (traced.has_scan and not traced.layers):
            return traced.run_around_scans(in_scan, *replacement)
        if policy.held:
            name = getattr(fn, "__name__", fn)
            raise NotImplementedError(
                f"remat with held {policy.held!r} of {name}: expected a scan over layers, whose "
                "body the encoding goes round; layers of a Python loop keep arrays"
            )
        if not traced.layers:
            raise ValueError(
                f"remat {policy.kind!r} found no layers in {getattr(fn, '__name__', fn)}: expected "
                "a scan over layers, or layers that repeat the same operations; otherwise put "
                "jax.checkpoint, nn.remat or nnx.remat round what shall be computed again"
            )
        layers = _in_groups(traced.layers) if policy.kind == "nested" else traced.layers
        return traced.run_segments(layers, checkpoint)

    return with_policy


def _in_groups(layers: list[Segment]) -> list[Segment]:
    """Segments of about √layers layers each."""
    size = math.isqrt(len(layers))
    if size == 1:
        return layers
    groups = [tuple(layers[i : i + size]) for i in range(0, len(layers), size)]
    return [Segment(group[0].start, group[-1].stop, group) for group in groups]


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
