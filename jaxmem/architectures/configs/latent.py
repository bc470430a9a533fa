"""Latent: the sizes of multi-latent attention."""

import dataclasses
from typing import Any

from .config_sizes import check_types


@dataclasses.dataclass(frozen=True)
class Latent:
    """The sizes of multi-latent attention (DeepSeek-V2, 2024).

    Keys and values of all heads come from one vector of `kv_rank` numbers a token, and from
    `rope_dim` numbers with a rotary position that all heads share. Only these are cached.

    Example:
        >>> Latent(kv_rank=16, nope_dim=8, rope_dim=4, value_dim=8).q_rank
        0

    Raises:
        ValueError: a size is below 1, or `q_rank` is below 0.
    """

    kv_rank: int
    nope_dim: int  # channels of a head without a position
    rope_dim: int  # channels with one
    value_dim: int
    q_rank: int = 0  # queries come from a vector of so many numbers; 0: from the layer's input

    def __post_init__(self):
        check_types(self)
        for field in dataclasses.fields(self):
            value, least = getattr(self, field.name), int(field.name != "q_rank")
            if value < least:
                raise ValueError(f"{field.name} is {value}, expected at least {least}")


def check_latent(c: Any) -> None:
    """Refuses options of attention that are not computed with `latent`.

    Raises:
        ValueError: such an option is set, or the sizes of heads differ from those of `latent`.
    """
    if c.latent is None:
        return
    sizes = {"head_dim": c.latent.nope_dim + c.latent.rope_dim, "rotary_dim": c.latent.rope_dim}
    sizes["kv_heads"] = c.heads
    for name, size in sizes.items():
        if getattr(c, name) != size:
            raise ValueError(f"{name} is {getattr(c, name)}, expected {size} as `latent` says")
    plain = {"positions": "rotary", "norm": "rms", "attention_scale": 1.0}
    off = (
        "output_gate",
        "qk_norm",
        "sinks",
        "clip_qkv",
        "attention_softcap",
        "query_growth",
        "norm_offset",
    )
    for name, value in plain.items():
        if getattr(c, name) != value:
            raise ValueError(f"{name} is {getattr(c, name)!r} with latent, expected {value!r}")
    for name in off:
        if getattr(c, name):
            raise ValueError(f"{name} is {getattr(c, name)!r}, which is not computed with latent")
