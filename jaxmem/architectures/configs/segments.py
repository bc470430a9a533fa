"""Segments: consecutive layers of one kind, which one scan runs."""

import dataclasses
import itertools
from typing import Any


@dataclasses.dataclass(frozen=True)
class Segment:
    """Consecutive layers of one kind, which one scan runs; `name` is that of their parameters."""

    name: str
    start: int
    length: int
    kind: str


def layer_kinds(config: Any) -> tuple[str, ...]:
    """The kind of each layer: layers of one kind have parameters of the same names and shapes.

    A kind is that of the feed-forward part, after "recurrent " where the layer has a recurrence in
    place of attention, or "both " where it has both.

    Example:
        >>> from jaxmem.architectures.decoder import Config, layer_kinds
        >>> sizes = dict(vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8)
        >>> layer_kinds(Config(**sizes))
        ('dense', 'dense')
    """
    if config.mixture is None:
        parts = ["dense"] * config.layers
    else:
        dense = config.mixture.dense or (False,) * config.layers
        parts = ["dense" if is_dense else "experts" for is_dense in dense]
    r = config.recurrence
    if r is None:
        return tuple(parts)
    parts = ["alone"] * config.layers if r.alone else parts
    parts = ["mixing"] * config.layers if r.kind == "rwkv" else parts
    states = r.layers or (True,) * config.layers
    mixer = "both" if r.beside else "recurrent"
    return tuple(f"{mixer} {part}" if state else part for part, state in zip(parts, states))


def feed_forward_kind(kind: str) -> str:
    """The feed-forward part of a layer of this kind: "dense", "experts", "mixing" with a
    state of its own, or "alone" without one.

    Example:
        >>> feed_forward_kind("recurrent experts")
        'experts'
    """
    return kind.rpartition(" ")[2]


def has_attention(kind: str) -> bool:
    """Whether a layer of this kind has attention."""
    return not kind.startswith("recurrent ")


def has_recurrence(kind: str) -> bool:
    """Whether a layer of this kind carries a state from token to token."""
    return " " in kind


def segments(config: Any) -> list[Segment]:
    """The runs of layers of one kind: "layers" if there is one, else "layers_0", "layers_1", ...

    Example:
        >>> from jaxmem.architectures.decoder import Config, segments
        >>> sizes = dict(vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8)
        >>> segments(Config(**sizes))
        [Segment(name='layers', start=0, length=2, kind='dense')]
    """
    runs = [(kind, len(list(run))) for kind, run in itertools.groupby(layer_kinds(config))]
    starts = itertools.accumulate([length for _, length in runs], initial=0)
    return [
        Segment("layers" if len(runs) == 1 else f"layers_{i}", start, length, kind)
        for i, ((kind, length), start) in enumerate(zip(runs, starts))
    ]
