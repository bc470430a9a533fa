"""parse: sizes as people write them: 100MB, 95MiB, 1.5GB, or a number of bytes."""

import re

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def parse(text: str) -> int:
    """The number of bytes that `text` names, rounded down to whole bytes.

    Raises:
        ValueError: `text` is no positive number with a unit of 1000 (MB), of 1024 (MiB) or none.

    Example:
        >>> parse("100MB"), parse("95 MiB"), parse("1.5gb"), parse("4096")
        (100000000, 99614720, 1500000000, 4096)
    """
    found = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([kmgt]?i?b|)", text.strip().lower())
    if not found or found[2] not in _UNITS or not (size := _bytes(*found.groups())):
        raise ValueError(f"{text!r} is no size, expected such as 100MB, 95MiB, 1.5GB or 4096")
    return size


def _bytes(number: str, unit: str) -> int:
    whole, _, fraction = number.partition(".")
    return int(whole + fraction) * _UNITS[unit] // 10 ** len(fraction)
