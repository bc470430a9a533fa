"""Arrays of numbers from a range of bytes of a file, read now or when they are used."""

import math
import pathlib
import stat

import numpy as np

from ..core.lazy import Lazy
from ..io.aligned_memory import aligned


def check_regular(path: pathlib.Path) -> None:
    """Refuses a directory, a pipe or a device; a pipe would be waited for without end.

    Raises:
        ValueError: The path is no regular file.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(f"{path} is a directory, a pipe or a device, expected a regular file")


def part(path: pathlib.Path, offset: int, count: int, dtype: np.dtype) -> np.ndarray:
    """`count` numbers from byte `offset` of a file.

    Raises:
        ValueError: The file has become shorter than it was when it was opened.
    """
    numbers = aligned((count,), dtype)
    with path.open("rb") as file:
        file.seek(offset)
        size = file.readinto(numbers.view(np.uint8)) if count else 0
    if size != numbers.nbytes:
        raise ValueError(f"{path} ends inside a tensor; has it changed since it was opened?")
    return numbers


def stored(path: pathlib.Path, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> Lazy:
    """A lazy array whose numbers are stored in C order from byte `offset` of a file."""
    read = lambda _=None: part(path, offset, math.prod(shape), dtype).reshape(shape)
    return Lazy(shape, dtype, read)
