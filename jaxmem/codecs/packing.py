"""Packing: b-bit codes as bit fields of 8, 4, 2 and 1 bits, so that no bit is wasted.

Codes of 3 bits are stored as a field of 2 bits and a field of 1 bit; 5, 6 and 7 bits likewise. A
field of width w holds 8/w neighbours along one axis in a byte, lowest bits first. Codes of 8 bits
are stored as int8 (code − 128), which integer products read directly.

An array of P interleaved parts has the elements j, P + j, 2 P + j, ... in part j. One byte of a
field holds one element of each of its 8/w parts, so parts are unpacked without moving a byte.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ..core.fold import Fold
from ..core.leaf import divided_shape, is_encoded
from ..kernels.decoded_tiles import interleave

WIDTHS = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}


def shifts(bits: int) -> list[tuple[int, int]]:
    """(width, left shift of the field's bits in the code) of each field, lowest bits first.

    Example:
        >>> shifts(7)
        [(4, 0), (2, 4), (1, 6)]
    """
    widths = WIDTHS[bits]
    return [(w, sum(widths[:i])) for i, w in enumerate(widths)]


def pack(codes: Array, bits: int, axis: int) -> tuple[Array, ...]:
    """Bit fields (uint8) of codes (uint8, below 2^bits), each 8/width times shorter along `axis`.

    `axis` is negative.

    Example:
        >>> import jax.numpy as jnp
        >>> pack(jnp.array([1, 2, 3, 4], jnp.uint8), 4, axis=-1)[0]
        Array([33, 67], dtype=uint8)
    """
    if bits == 8:
        # XLA may skip a conversion that wraps on the way to f32 (jax 0.10.2 and 0.12, CPU).
        return (lax.bitcast_convert_type(codes ^ 128, jnp.int8),)
    at, fields = codes.ndim + axis, []
    for width, shift in shifts(bits):
        per_byte = 8 // width
        short = -codes.shape[at] % per_byte
        padding = [(0, short if a == at else 0, 0) for a in range(codes.ndim)]
        field = lax.pad(codes, np.uint8(0), padding) if short else codes
        count = field.shape[at] // per_byte
        field = field.reshape(*codes.shape[:at], count, per_byte, *codes.shape[at + 1 :])
        places = (_place(field, j, at + 1, width, shift) for j in range(per_byte))
        fields.append(functools.reduce(lax.bitwise_or, places))
    return tuple(fields)


def _place(field: Array, j: int, axis: int, width: int, shift: int) -> Array:
    """`width` bits of the codes at `j` of an axis, from bit `shift` on, where a byte has them.

    Its functions are `lax`'s: they take a tenth of the time of operators to trace.
    """
    bits = lax.index_in_dim(field, j, axis, keepdims=False)
    if shift:
        bits = lax.shift_right_logical(bits, np.uint8(shift))
    bits = lax.bitwise_and(bits, np.uint8((1 << width) - 1))
    return lax.shift_left(bits, np.uint8(j * width)) if j else bits


def shard_packed(
    fields: tuple[Array, ...],
    groups: Any,
    fold: Fold,
    side: str,
    parts: int,
    *,
    group: int,
    widths: tuple[int, ...],
) -> Any:
    """The shapes (fields, groups) of one of `parts` shards of packed codes and their groups.

    Args:
        fields: codes packed along n, each (*stack, n·width/8, k).
        groups: a tree of arrays with one number for each group and row, (..., groups, n).
        fold: the shard's fold.
        side: "kept" divides the rows, "summed" divides the columns.
        parts: how many shards there are.
        group: columns that share a number of `groups`.
        widths: bits of each field.

    Returns:
        NotImplemented if a shard would hold a part of a byte or of a group. Shards of columns may
        share a group that is the whole row.
    """
    arrays = jax.tree.leaves(groups, is_leaf=is_encoded)
    if side == "kept":
        divides = all(fold.n * width % 8 == 0 for width in widths)
        fields_axis, groups_axis = -2, -1
    else:
        one_group = all(a.shape[-2] == 1 for a in arrays)
        divides = one_group or fold.k % group == 0
        fields_axis, groups_axis = -1, -2
    divide = lambda tree, axis: jax.tree.map(
        lambda a: divided_shape(a, axis, parts), tree, is_leaf=is_encoded
    )
    shapes = divide(fields, fields_axis), divide(groups, groups_axis)
    missing = any(x is NotImplemented for x in jax.tree.leaves(shapes, is_leaf=is_encoded))
    return shapes if divides and not missing else NotImplemented


def slice_packed(
    fields: tuple[Array, ...], widths: tuple[int, ...], start: Array, size: int, axis: int = 0
) -> tuple[Array, ...]:
    """The fields of codes [start, start + size) along the packed `axis`; 8 divides `start`."""
    return tuple(
        lax.dynamic_slice_in_dim(field, start * width // 8, -(-size * width // 8), axis)
        for field, width in zip(fields, widths)
    )


def field_parts(field: Array, width: int) -> list[Array]:
    """The 8/width interleaved parts of a field, as int8 codes of `width` bits."""
    if width == 8:
        return [field]
    mask = (1 << width) - 1
    return [(field >> width * j & mask).astype(jnp.int8) for j in range(8 // width)]


def unpack_parts(fields: tuple[Array, ...], bits: int, n: int, axis: int) -> list[Array]:
    """The interleaved parts of the codes, each int8 as `unpack` returns it; n codes along `axis`.

    The number of parts is the number of codes in a byte of the narrowest field.

    Example:
        >>> import jax.numpy as jnp
        >>> codes = jnp.arange(6, dtype=jnp.uint8)
        >>> unpack_parts(pack(codes, 4, axis=-1), 4, 6, axis=-1)
        [Array([0, 2, 4], dtype=int8), Array([1, 3, 5], dtype=int8)]
    """
    if bits == 8:
        return list(fields)
    return [part.astype(jnp.int8) for part in join_fields(fields, shifts(bits), n, axis)]


def centred_parts(fields: tuple[Array, ...], bits: int, n: int, axis: int) -> list[Array]:
    """The interleaved parts of (code − 2^(bits−1)) · 2^(8−bits), int8.

    The codes less the middle of their range, in the highest bits of a byte.

    Example:
        >>> import jax.numpy as jnp
        >>> codes = jnp.arange(6, dtype=jnp.uint8)
        >>> centred_parts(pack(codes, 4, axis=-1), 4, 6, axis=-1)
        [Array([-128,  -96,  -64], dtype=int8), Array([-112,  -80,  -48], dtype=int8)]
    """
    if bits == 8:
        return list(fields)
    high = [(width, shift + 8 - bits) for width, shift in shifts(bits)]
    return [lax.bitcast_convert_type(a ^ 128, jnp.int8) for a in join_fields(fields, high, n, axis)]


def join_fields(
    fields: tuple[Array, ...], shifts: list[tuple[int, int]], n: int, axis: int
) -> list[Array]:
    """The interleaved parts, uint8, of codes; `shifts` has (width, left shift) of each field."""
    count = 8 // min(width for width, _ in shifts)

    def part_at(places):
        """The codes at `places`, a range of indices along `axis`."""
        codes = None
        for field, (width, shift) in zip(fields, shifts):
            byte, place = divmod(places.start, 8 // width)
            step = places.step * width // 8
            end = byte + max(0, (len(places) - 1) * step + 1)
            part = lax.slice_in_dim(field, byte, end, step, axis)
            left = shift - place * width  # a shift by 0 would be a copy of the weight on a CPU
            part = part << left if left > 0 else part >> -left if left else part
            part = part & ((1 << width) - 1 << shift)
            codes = part if codes is None else codes | part
        return codes

    return [part_at(range(j, n, count)) for j in range(max(1, min(count, n)))]


def unpack(fields: tuple[Array, ...], bits: int, n: int, axis: int) -> Array:
    """The n codes along `axis` as int8; codes of 8 bits are code − 128.

    Example:
        >>> import jax.numpy as jnp
        >>> codes = jnp.arange(6, dtype=jnp.uint8)
        >>> unpack(pack(codes, 3, axis=-1), 3, 6, axis=-1)
        Array([0, 1, 2, 3, 4, 5], dtype=int8)
    """
    codes = None
    for field, (width, shift) in zip(fields, shifts(bits)):
        part = interleave(field_parts(field, width), axis)
        # A shift by 0 would be a copy of the weight on a CPU.
        part = part << shift if shift else part
        # Each field is padded to whole bytes; the padding is cut off.
        part = lax.slice_in_dim(part, 0, n, axis=axis) if part.shape[axis] != n else part
        codes = part if codes is None else codes | part
    return codes


def _look_up(table: Array, index: Array) -> Array:
    """table[index], (m, k). One row is looked up twice.

    XLA for TPU makes a slice of the look-up of one row, and copies the whole table for it, since a
    tile of bytes has 32 rows (v5e, jax 0.10.2).
    """
    if index.shape[0] != 1:
        return table[index]
    return table[jnp.concatenate([index, index])][:1]


def unpack_rows(fields: tuple[Array, ...], bits: int, index: Array) -> Array:
    """Rows `index` (m,) of codes packed along their first axis, (m, k) int8 as of `unpack`."""
    codes = 0
    for field, (width, shift) in zip(fields, shifts(bits)):
        if width == 8:
            return _look_up(field, index)
        per_byte = 8 // width
        place = (index % per_byte * width).astype(jnp.uint8)[:, None]
        part = _look_up(field, index // per_byte) >> place & (1 << width) - 1
        codes = codes | part.astype(jnp.int8) << shift
    return codes
