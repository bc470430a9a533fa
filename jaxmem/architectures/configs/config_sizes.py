"""Checks of the types and sizes in a configuration."""

import dataclasses
import math
import numbers
import typing
from typing import Any

from ..families.ignored_hf_options import MOST_LAYERS


def check_types(config: Any) -> None:
    """Refuses a value of another type than its field has, and a number that is not finite.

    Raises:
        TypeError: a field's value has another type.
        ValueError: a number is NaN or infinite.

    Example:
        >>> from jaxmem.architectures.bert import Config
        >>> Config(vocab=64, width="32", ffn=48, layers=2, heads=4)
        Traceback (most recent call last):
        TypeError: width is '32', expected int
    """
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if not _has_type(value, field.type):
            expected = getattr(field.type, "__name__", str(field.type))
            raise TypeError(f"{field.name} is {value!r}, expected {expected}")
        values = value if isinstance(value, tuple | list) else (value,)
        if not all(math.isfinite(x) for x in values if isinstance(x, numbers.Real)):
            raise ValueError(f"{field.name} is {value!r}, expected finite numbers")


def _has_type(value: Any, hint: Any) -> bool:
    """Whether a value has the type of a field; an int passes as a float, a list as a tuple."""
    parts = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return isinstance(value, tuple | list) and all(_has_type(x, parts[0]) for x in value)
    if parts:
        return any(_has_type(value, part) for part in parts)
    if isinstance(value, bool) or hint is bool:
        return isinstance(value, bool) and hint is bool
    kinds = {int: numbers.Integral, float: numbers.Real}  # NumPy's integers and floats, too
    return isinstance(value, kinds.get(hint, hint))


def check_sizes(config: Any, *names: str) -> None:
    """Refuses sizes below 1.

    Raises:
        ValueError: one of the fields `names` is less than 1.
    """
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name} is {getattr(config, name)}, expected at least 1")


def check_positive(config: Any, *names: str) -> None:
    """Refuses sizes below 1, more layers than `MOST_LAYERS`, and an `eps` that is no small number.

    Raises:
        ValueError: one of the fields `names` is less than 1, there are too many layers, or `eps`
            is not in [0, 1).
    """
    check_sizes(config, *names)
    if config.layers > MOST_LAYERS:
        raise ValueError(f"layers is {config.layers}, expected at most {MOST_LAYERS}")
    if not 0 <= config.eps < 1:
        raise ValueError(f"eps is {config.eps}, expected at least 0 and below 1")


def check_windows(config: Any) -> None:
    """Refuses `local` without an entry for each layer, or without a `window`.

    Raises:
        ValueError: it is so.
    """
    if config.local and (len(config.local) != config.layers or config.window < 1):
        raise ValueError(
            f"local names {len(config.local)} layers with window {config.window}, "
            f"expected {config.layers} and a window of at least 1"
        )


def set_after_family(config: Any) -> list[str]:
    """The fields after `family` that are set: the mechanisms of a wider family.

    Example:
        >>> from jaxmem.architectures.bert import Config
        >>> set_after_family(Config(vocab=64, width=32, ffn=48, layers=2, heads=4, pad=1))
        ['pad']
    """
    fields = dataclasses.fields(config)
    options = fields[[field.name for field in fields].index("family") + 1 :]
    return [f.name for f in options if getattr(config, f.name) != f.default]


def check_family(config: Any, expected: str) -> None:
    """Refuses a configuration of another family.

    Raises:
        ValueError: `config.family` is not `expected`.
    """
    if config.family != expected:
        raise ValueError(f"family is {config.family!r}, expected {expected!r}")


def set_head_dim(config: Any) -> None:
    """Sets `head_dim` of a frozen configuration to width / heads where it is 0.

    Raises:
        ValueError: the width does not divide into the heads.
    """
    if not config.head_dim and config.width % config.heads:
        raise ValueError(f"a width of {config.width} does not divide into {config.heads} heads")
    object.__setattr__(config, "head_dim", config.head_dim or config.width // config.heads)
