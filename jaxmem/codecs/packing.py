"""Packing: b-bit codes as bit fields of 8, 4, 2 and 1 bits, so that no bit is wasted.

3 bits are a field of 2 and one of 1; 5, 6 and 7 likewise. A field of width w holds 8/w neighbours
along one axis in a byte, lowest bits first. 8-bit codes are kept as int8 (code − 128), which
integer products read as they are.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..core.fold import Fold
from ..core.leaf import divided_shape, is_encoded
from ..kernels.tiled_matmul import interleave

WIDTHS = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,)}


def shifts(bits: int) -> list[tuple[int, int]]:
    """(width, how far its bits stand to the left) of each field, lowest first.

    Example:
        >>> shifts(7)
        [(4, 0), (2, 4), (1, 6)]
    """
    widths = WIDTHS[bits]
    return [(w, sum(widths[:i])) for i, w in enumerate(widths)]


def pack(codes: Array, bits: int, axis: int) -> tuple[Array, ...]:
    """Codes (uint8, below 2^bits) as bit fields; `axis` (negative) shrinks by 8/width.

    Example:
        >>> import jax.numpy as jnp
        >>> pack(jnp.array([1, 2, 3, 4], jnp.uint8), 4, axis=-1)[0]
        Array([33, 67], dtype=uint8)
    """
    if bits == 8:
        # a conversion that wraps is one XLA may skip on the way to f32 (jax 0.10.2 and 0.12, CPU)
        return (lax.bitcast_convert_type(codes ^ 128, jnp.int8),)
    at, fields = codes.ndim + axis, []
    for width, shift in shifts(bits):
        per_byte = 8 // width
        short = -codes.shape[at] % per_byte
        field = jnp.pad(codes, [(0, short if a == at else 0) for a in range(codes.ndim)])
        count = field.shape[at] // per_byte
        field = field.reshape(*codes.shape[:at], count, per_byte, *codes.shape[at + 1 :])
        parts = (lax.index_in_dim(field, j, at + 1, keepdims=False) for j in range(per_byte))
        mask = (1 << width) - 1
        fields.append(sum((part >> shift & mask) << j * width for j, part in enumerate(parts)))
    return tuple(fields)


def divided(fields: Any, groups: Any, fold: Fold, side: str, parts: int, *, group: int, widths):
    """(fields, groups) as shapes of one of `parts` runs; NotImplemented where they split a unit.

    `fields` are codes packed along n, (*stack, n·width/8, k); `groups` are arrays of a number for
    each group and row, (..., groups, n). `fold` is the piece's. Runs of rows hold whole bytes, runs
    of columns whole groups, but a group that is the whole row is shared.
    """
    arrays = jax.tree.leaves(groups, is_leaf=is_encoded)
    if side == "kept":
        whole, along, beside = all(fold.n * width % 8 == 0 for width in widths), -2, -1
    else:
        one = all(a.shape[-2] == 1 for a in arrays)
        whole, along, beside = one or fold.k % group == 0, -1, -2
    cut = lambda tree, axis: jax.tree.map(
        lambda a: divided_shape(a, axis, parts), tree, is_leaf=is_encoded
    )
    out = cut(fields, along), cut(groups, beside)
    missing = any(x is NotImplemented for x in jax.tree.leaves(out, is_leaf=is_encoded))
    return out if whole and not missing else NotImplemented


def slices(field: Array, width: int) -> list[Array]:
    """The 8/width interleaved parts of a field, as int8."""
    if width == 8:
        return [field]
    mask = (1 << width) - 1
    return [(field >> width * j & mask).astype(jnp.int8) for j in range(8 // width)]


def strands(fields: tuple[Array, ...], bits: int, n: int, axis: int) -> list[Array]:
    """The codes j, P + j, 2 P + j, ... as entry j of P, what a byte of the narrowest field holds.

    As `unpack` gives them, int8, n along `axis` in all; nothing is interleaved.

    Example:
        >>> import jax.numpy as jnp
        >>> codes = jnp.arange(6, dtype=jnp.uint8)
        >>> strands(pack(codes, 4, axis=-1), 4, 6, axis=-1)
        [Array([0, 2, 4], dtype=int8), Array([1, 3, 5], dtype=int8)]
    """
    if bits == 8:
        return list(fields)
    return [part.astype(jnp.int8) for part in joined(fields, shifts(bits), n, axis)]


def centred(fields: tuple[Array, ...], bits: int, n: int, axis: int) -> list[Array]:
    """Strands of (code − 2^(bits−1)) · 2^(8−bits), int8: all bits as high as a byte has them.

    Example:
        >>> import jax.numpy as jnp
        >>> codes = jnp.arange(6, dtype=jnp.uint8)
        >>> centred(pack(codes, 4, axis=-1), 4, 6, axis=-1)
        [Array([-128,  -96,  -64], dtype=int8), Array([-112,  -80,  -48], dtype=int8)]
    """
    if bits == 8:
        return list(fields)
    high = [(width, shift + 8 - bits) for width, shift in shifts(bits)]
    return [lax.bitcast_convert_type(a ^ 128, jnp.int8) for a in joined(fields, high, n, axis)]


def joined(fields: tuple[Array, ...], shifts: list[tuple[int, int]], n: int, axis: int):
    """Strands, in uint8, of fields whose (width, shift) are given."""
    count = 8 // min(width for width, _ in shifts)

    def strand(places):
        codes = None
        for field, (width, shift) in zip(fields, shifts):
            byte, at = divmod(places.start, 8 // width)
            step = places.step * width // 8
            end = byte + max(0, (len(places) - 1) * step + 1)
            part = lax.slice_in_dim(field, byte, end, step, axis)
            by = shift - at * width  # by none is a copy of the weight on a CPU
            part = part << by if by > 0 else part >> -by if by else part
            part = part & ((1 << width) - 1 << shift)
            codes = part if codes is None else codes | part
        return codes

    return [strand(range(j, n, count)) for j in range(max(1, min(count, n)))]


def unpack(fields: tuple[Array, ...], bits: int, n: int, axis: int) -> Array:
    """The codes, n along `axis`: uint8 values as int8, or int8 (code − 128) when 8 bits.

    Example:
        >>> import jax.numpy as jnp
        >>> codes = jnp.arange(6, dtype=jnp.uint8)
        >>> unpack(pack(codes, 3, axis=-1), 3, 6, axis=-1)
        Array([0, 1, 2, 3, 4, 5], dtype=int8)
    """
    codes = None
    for field, (width, shift) in zip(fields, shifts(bits)):
        part = interleave(slices(field, width), axis)
        part = part << shift if shift else part  # by none is a copy of the weight on a CPU
        # each field is padded to whole bytes by itself
        part = lax.slice_in_dim(part, 0, n, axis=axis) if part.shape[axis] != n else part
        codes = part if codes is None else codes | part
    return codes


def unpack_rows(fields: tuple[Array, ...], bits: int, index: Array) -> Array:
    """Rows `index` (m,) of codes packed along their first axis: (m, k) int8."""
    codes = 0
    for field, (width, shift) in zip(fields, shifts(bits)):
        if width == 8:
            return field[index]
        per_byte = 8 // width
        place = (index % per_byte * width).astype(jnp.uint8)[:, None]
        part = field[index // per_byte] >> place & (1 << width) - 1
        codes = codes | part.astype(jnp.int8) << shift
    return codes
