"""Recurrence: the sizes and options of layers that carry a state from token to token."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from .config_sizes import check_sizes, check_types

KINDS = ("mamba", "mamba2", "gated", "convolution", "rwkv", "delta")
_NORMS = ("none", "gate_first", "gate_last")
_TAPPED = ("mamba", "mamba2", "gated", "convolution", "delta")
_OPTIONS = {  # and the kinds that compute each
    "state": ("mamba", "mamba2", "delta"),
    "heads": ("mamba2", "gated", "delta"),
    "groups": ("mamba2", "delta"),
    **dict.fromkeys(("taps", "conv_bias"), _TAPPED),
    **dict.fromkeys(("in_bias", "out_bias"), _TAPPED[:-1]),
    "inner_norms": ("mamba",),
    **dict.fromkeys(("norm", "step_range", "in_scale", "scales", "out_scale"), ("mamba2",)),
}
_OF_ATTENTION = ("qkv_bias", "out_bias", "qk_norm", "sinks", "output_gate", "attention_softcap")
_OF_ATTENTION += ("clip_qkv", "query_scale", "local", "no_rope")
_OF_MLP = ("activation", "gelu", "mlp_bias", "mlp_scales")
_RWKV_STATE = 3  # numbers of state of a channel


@dataclasses.dataclass(frozen=True)
class Recurrence:
    """The layers with a state in place of attention, or beside it; `kind` is their mechanism.

    "mamba" and "mamba2" are selective scans (selective_scan.py), "gated" is a gated linear
    recurrence (gated_linear_recurrence.py), "convolution" a short convolution
    (short_convolution.py), "rwkv" a decaying average (rwkv_mixing.py), "delta" a gated delta rule
    (gated_delta_rule.py).

    Example:
        >>> Recurrence("mamba", channels=64, state=16, taps=4, step_rank=2).heads
        64

    Raises:
        ValueError: `kind` is unknown, or sizes do not fit each other.
    """

    kind: str
    channels: int  # numbers of a token that the recurrence works on
    state: int = 1  # numbers of state of each channel
    heads: int = 0  # heads that the channels divide into; 0: a head is a channel
    groups: int = 1  # heads of a group share what reads and writes their states
    taps: int = 1  # tokens that the convolution before the recurrence sees
    step_rank: int = 0  # "mamba": steps are made of a vector of so many numbers
    layers: tuple[bool, ...] = ()  # which layers have a state; empty for all
    beside: bool = False  # attention runs beside the recurrence, and both are added
    alone: bool = False  # a layer is the recurrence only, without a feed-forward part
    in_bias: bool = False
    out_bias: bool = False
    conv_bias: bool = False
    inner_norms: bool = False  # "mamba": a norm of the steps' vector and of each direction
    norm: str = "none"  # "mamba2": of the outputs, before ("gate_last") or after their gate
    step_range: tuple[float, ...] = ()  # "mamba2": steps are cut to (least, most)
    in_scale: float = 1.0  # "mamba2": factor of the layer's input
    scales: tuple[float, ...] = ()  # "mamba2": factors of gate, in, b, c and step
    out_scale: float = 1.0  # "mamba2": factor of the layer's output

    def __post_init__(self):
        for name in ("layers", "step_range", "scales"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "heads", self.heads or self.channels)
        if self.kind == "rwkv" and self.state == type(self).state:
            object.__setattr__(self, "state", _RWKV_STATE)
        check_types(self)
        check_sizes(self, "channels", "state", "heads", "groups", "taps")
        if self.kind not in KINDS or self.norm not in _NORMS:
            raise ValueError(
                f"kind is {self.kind!r} and norm {self.norm!r}, expected one of "
                f"{', '.join(KINDS)}, and of {', '.join(_NORMS)}"
            )
        if self.channels % self.heads or self.heads % self.groups:
            raise ValueError(
                f"{self.channels} channels in {self.heads} heads in {self.groups} groups, "
                "expected sizes that divide"
            )
        usual = {"heads": self.channels, "state": _RWKV_STATE if self.kind == "rwkv" else 1}
        for name, kinds in _OPTIONS.items():
            default = usual.get(name, getattr(type(self), name))
            if self.kind not in kinds and getattr(self, name) != default:
                raise ValueError(f"{name} is {getattr(self, name)!r} with kind {self.kind!r}")
        if (self.step_rank > 0) != (self.kind == "mamba"):
            raise ValueError(f"step_rank is {self.step_rank} with kind {self.kind!r}")
        for name, size in (("step_range", 2), ("scales", 5)):
            if len(getattr(self, name)) not in (0, size):
                raise ValueError(f"{name} has {len(getattr(self, name))} values, not 0 or {size}")

    @property
    def replaces_attention(self) -> bool:
        """Whether no layer has attention."""
        return all(self.layers) and not self.beside

    def count(self, layers: int) -> int:
        """How many of a model's `layers` have a state."""
        return sum(self.layers) if self.layers else layers

    def linears(self, width: int) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of each linear of a layer of a model of this `width`."""
        n, directions = self.channels, (width, self.groups * self.state)
        inner, out = (width, n), {"out": (n, width)}
        match self.kind:
            case "mamba":
                parts = {"gate": inner, "in": inner, "step": (self.step_rank, n)}
                parts["select"] = (n, self.step_rank + 2 * self.state)
            case "mamba2":
                parts = {"gate": inner, "in": inner, "b": directions, "c": directions}
                parts["step"] = (width, self.heads)
            case "delta":
                parts = {"q": directions, "k": directions, "v": inner, "gate": inner}
                parts |= dict.fromkeys(("write", "step"), (width, self.heads))
            case "gated":
                parts = {"gate": inner, "in": inner}
            case "convolution":
                parts = {"b": inner, "c": inner, "in": inner}
            case "rwkv":
                parts = dict.fromkeys(("k", "v", "receptance"), inner)
        return parts | out

    def convolved(self) -> int:
        """The channels that the convolution works on."""
        directions = 2 * self.groups * self.state
        return self.channels + (directions if self.kind in ("mamba2", "delta") else 0)

    def cache(self, layers: int, width: int, batch: int, dtype: DTypeLike) -> dict:
        """The states of all layers before the first token, (layers with a state, batch, ...).

        "conv" are the last inputs of the convolution, (taps - 1, n); "state" those of the
        recurrence in f32, (state, channels). In an "rwkv", "conv" and "mlp_conv" are the last
        inputs of the layer's two parts.
        """
        stack = (self.count(layers), batch)
        states = {"state": jnp.zeros((*stack, self.state, self.channels), jnp.float32)}
        if self.kind == "rwkv":
            last = lambda: jnp.zeros((*stack, 1, width), dtype)  # two arrays: both are donated
            return states | {"conv": last(), "mlp_conv": last()}
        conv = {"conv": jnp.zeros((*stack, self.taps - 1, self.convolved()), dtype)}
        return conv if self.kind == "convolution" else states | conv


def check_recurrence(c: Any) -> None:
    """Refuses a recurrence that does not say which layers it is in, and options without effect.

    Raises:
        ValueError: `layers` has no entry for each layer, or `c` has what no layer computes.
    """
    r = c.recurrence
    if r is None:
        return
    if len(r.layers) not in (0, c.layers):
        raise ValueError(f"recurrence.layers names {len(r.layers)} layers, expected {c.layers}")
    if r.beside and r.layers:
        raise ValueError("recurrence.layers is given with beside, which is in every layer")
    if r.kind == "rwkv" and (r.layers or r.beside or r.alone or c.mixture or c.gated):
        raise ValueError("recurrence is an 'rwkv', expected it in every layer, with gated=False")
    if r.alone and (c.mixture or c.parallel or c.post_norms):
        raise ValueError("recurrence.alone is True with a mixture, parallel or post_norms")
    unused = _OF_ATTENTION if r.replaces_attention else ()
    unused += _OF_MLP if r.alone or r.kind == "rwkv" else ()
    for name in (*unused, "latent"):
        if getattr(c, name):
            raise ValueError(f"{name} is {getattr(c, name)!r} with {r.kind!r}, which computes none")


def any_attention(c: Any) -> bool:
    """Whether some layer of a configuration has attention."""
    return c.recurrence is None or not c.recurrence.replaces_attention
