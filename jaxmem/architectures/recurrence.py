"""Recurrence: the sizes and options of layers that carry a state from token to token."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from .config_sizes import check_types

KINDS = ("mamba", "mamba2")
_NORMS = ("none", "gate_first", "gate_last")


@dataclasses.dataclass(frozen=True)
class Recurrence:
    """The layers with a state in place of attention, or beside it; `kind` is their mechanism.

    "mamba" and "mamba2" are selective scans (selective_scan.py).

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

    def __post_init__(self):
        for name in ("layers", "step_range"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "heads", self.heads or self.channels)
        check_types(self)
        for name in ("channels", "state", "heads", "groups", "taps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
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
        if (self.step_rank > 0) != (self.kind == "mamba"):
            raise ValueError(f"step_rank is {self.step_rank} with kind {self.kind!r}")
        if len(self.step_range) not in (0, 2):
            raise ValueError(f"step_range has {len(self.step_range)} values, expected 0 or 2")

    @property
    def replaces_attention(self) -> bool:
        """Whether no layer has attention."""
        return all(self.layers) and not self.beside

    def count(self, layers: int) -> int:
        """How many of a model's `layers` have a state."""
        return sum(self.layers) if self.layers else layers

    def linears(self, width: int) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of each linear of a layer of a model of this `width`."""
        n, directions = self.channels, self.groups * self.state
        if self.kind == "mamba":
            select = (n, self.step_rank + 2 * self.state)
            parts = {"in": (width, n), "gate": (width, n), "select": select}
            return parts | {"step": (self.step_rank, n), "out": (n, width)}
        parts = dict.fromkeys(("b", "c"), (width, directions))
        parts |= {"gate": (width, n), "in": (width, n), "step": (width, self.heads)}
        return parts | {"out": (n, width)}

    def convolved(self) -> int:
        """The channels that the convolution works on."""
        both = 2 * self.groups * self.state
        return self.channels + (both if self.kind == "mamba2" else 0)

    def cache(self, layers: int, batch: int, dtype: DTypeLike) -> dict:
        """The states of all layers before the first token, (layers with a state, batch, ...).

        "conv" are the last inputs of the convolution, "state" those of the recurrence in f32.
        """
        count = self.count(layers)
        conv = (count, batch, self.taps - 1, self.convolved())
        state = (count, batch, self.channels, self.state)
        return {"conv": jnp.zeros(conv, dtype), "state": jnp.zeros(state, jnp.float32)}


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
    if r.alone and (c.mixture or c.parallel or c.post_norms):
        raise ValueError("recurrence.alone is True with a mixture, parallel or post_norms")


def has_attention(c: Any) -> bool:
    """Whether some layer of a configuration has attention."""
    return c.recurrence is None or not c.recurrence.replaces_attention
