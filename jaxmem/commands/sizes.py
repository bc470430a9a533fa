"""Size, show: a number of bytes as an option of a command, and as its output shows it."""

from typing import Annotated

from tyro.constructors import PrimitiveConstructorSpec

from ..core.byte_sizes import parse


def show(nbytes: int) -> str:
    """`nbytes` in the largest unit of 1000 that is not above it.

    Example:
        >>> show(102_349_568), show(16), show(8_030_261_248)
        ('102.3 MB', '16 B', '8.03 GB')
    """
    for unit, size, digits in (("GB", 10**9, 2), ("MB", 10**6, 1), ("kB", 10**3, 1)):
        if nbytes >= size:
            return f"{nbytes / size:.{digits}f} {unit}"
    return f"{nbytes} B"


Size = Annotated[
    int,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="SIZE",
        instance_from_str=lambda args: parse(args[0]),
        is_instance=lambda value: isinstance(value, int),
        str_from_instance=lambda value: [str(value)],
    ),
]
