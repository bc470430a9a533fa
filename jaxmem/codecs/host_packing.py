"""Bit fields of NumPy arrays, made and taken apart on the host: no program for each shape.

The fields are those of `packing`.
"""

from typing import Any

import numpy as np

from .packing import WIDTHS, shifts


def cut_packed(fields: tuple[Any, ...], bits: int, n: int, axis: int) -> tuple[Any, ...]:
    """The fields of the first n codes along the packed `axis`, -1 or -2, of NumPy arrays.

    The other codes of the last byte become zeros, as `pack` leaves them.

    Example:
        >>> import numpy as np
        >>> full = np.full((32, 1), 255, np.uint8)
        >>> [field[:, 0].tolist() for field in cut_packed((full, full), 3, 9, -2)]
        [[255, 255, 3], [255, 1]]
    """
    others = (slice(None),) * (-1 - axis)

    def cut(field, width):
        field = field[(..., slice(-(-n * width // 8)), *others)]
        if left := n * width % 8:
            field = field.copy()
            field[(..., slice(-1, None), *others)] &= (1 << left) - 1
        return field

    return tuple(map(cut, fields, WIDTHS[bits]))


def pack_on_host(codes: np.ndarray, bits: int, axis: int) -> tuple[np.ndarray, ...]:
    """The fields of NumPy codes (uint8, below 2^bits), packed along `axis`, -1 or -2.

    Example:
        >>> import numpy as np
        >>> [field.tolist() for field in pack_on_host(np.uint8([1, 2, 7]), 3, -1)]
        [[57], [4]]
    """
    if bits == 8:
        return ((codes ^ np.uint8(128)).view(np.int8),)
    at, fields = codes.ndim + axis, []
    others = (1,) * (-1 - axis)
    for width, shift in shifts(bits):
        per_byte = 8 // width
        padding = [(0, -size % per_byte if a == at else 0) for a, size in enumerate(codes.shape)]
        field = np.pad(codes >> np.uint8(shift) & np.uint8((1 << width) - 1), padding)
        count = field.shape[at] // per_byte
        field = field.reshape(*codes.shape[:at], count, per_byte, *codes.shape[at + 1 :])
        places = np.arange(0, 8, width, dtype=np.uint8).reshape(-1, *others)
        fields.append(np.bitwise_or.reduce(field << places, at + 1))
    return tuple(fields)


def unpack_on_host(fields: tuple[Any, ...], bits: int, n: int, axis: int) -> np.ndarray:
    """The n codes along `axis`, -1 or -2, of arrays of any kind, as NumPy uint8.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmem.codecs.packing import pack
        >>> codes = jnp.arange(6, dtype=jnp.uint8)
        >>> [unpack_on_host(pack(codes, bits, -1), bits, 6, -1).tolist() for bits in (3, 8)]
        [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]]
    """
    if bits == 8:
        return np.asarray(fields[0]).view(np.uint8) ^ np.uint8(128)
    others = (slice(None),) * (-1 - axis)
    codes = np.uint8(0)
    for field, (width, shift) in zip(map(np.asarray, fields), shifts(bits)):
        places = np.arange(0, 8, width, dtype=np.uint8)
        parts = np.expand_dims(field, field.ndim + axis + 1)
        parts = parts >> places.reshape(-1, *(1,) * len(others)) & np.uint8((1 << width) - 1)
        shape = list(field.shape)
        shape[axis] *= len(places)
        codes = codes | parts.reshape(shape)[(..., slice(n), *others)] << np.uint8(shift)
    return codes
