"""What a codec holds other codecs for: whether one of them wants stats, or looks at all layers."""

import dataclasses
from typing import Any


def needs_stats(codec: Any) -> bool:
    """Whether a codec, or one inside it, cannot do without stats.

    Example:
        >>> import jaxmem as jm
        >>> needs_stats(jm.Search(jm.Int(4))), needs_stats(jm.Dynamic(jm.GPTQ(jm.Int(4))))
        (False, True)
    """
    return getattr(codec, "calibrated", False) or any(map(needs_stats, _inside(codec)))


def ties_layers(codec: Any) -> bool:
    """Whether a codec, or one inside it, looks at all layers of a stack together."""
    return getattr(codec, "layers_together", False) or any(map(ties_layers, _inside(codec)))


def _inside(codec):
    if isinstance(codec, tuple):
        return codec
    if not dataclasses.is_dataclass(codec):
        return ()
    return [getattr(codec, field.name) for field in dataclasses.fields(codec)]
