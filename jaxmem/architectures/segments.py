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

    Example:
        >>> from jaxmem.architectures.decoder import Config, layer_kinds
        >>> sizes = dict(vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8)
        >>> layer_kinds(Config(**sizes))
        ('dense', 'dense')
    """
    if config.mixture is None:
        return ("dense",) * config.layers
    dense = config.mixture.dense or (False,) * config.layers
    return tuple("dense" if is_dense else "experts" for is_dense in dense)


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
