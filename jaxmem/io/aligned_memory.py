"""aligned: memory for an array that JAX on a CPU takes as it is; others it copies, some twice."""

import math

import numpy as np

ALIGNMENT = 64  # bytes


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array of this shape whose memory begins at a multiple of 64 bytes, with any numbers.

    Example:
        >>> aligned((3, 5), np.dtype("float32")).ctypes.data % ALIGNMENT
        0
    """
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)
