"""y = Σ_g (x_g · values_gᵀ) · scale_g on a TPU: codes are unpacked on the chip, block by block.

XLA has no such fusion: it would write decoded blocks to memory first, read the codes once for each
part of a byte, or, summing over groups, spend four times the cycles. Here 256 rows by 128 columns
are unpacked into on-chip memory at a time, multiplied, and scaled after the product; HBM sees the
packed codes and nothing else.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from .cost_estimate import cost
from .dispatch import on_one_chip

LANES = 128  # columns unpacked at a time: the width of the chip's registers and of its matrix unit
ROWS = 256  # rows of the weight at a time: 32 bytes of the narrowest field
COLUMNS = 8192  # of a row at a time, at most
INPUTS, BYTES = 256, 2**23  # of x on the chip at a time: whole rows


def packed_product(x: Array, leaf: Any, otherwise: Callable, precision=None) -> Array:
    """x (m, k) . rows^T (m, n) f32: on one TPU chip by the kernel where it can read the rows.

    `leaf.on_chip()` gives what `grouped_product` takes; elsewhere it is `otherwise(x, leaf)`.
    """
    how = leaf.on_chip()
    groups = (how["levels"] if "levels" in how else how["scale"]).shape[-2]
    if not suits(x.shape[1], how["group"], groups):
        return otherwise(x, leaf)
    kernel = lambda x, leaf: grouped_product(x, **leaf.on_chip(), precision=precision)
    return on_one_chip(kernel, otherwise, x, leaf)


def suits(k: int, group: int, groups: int = 2) -> bool:
    """Whether the kernel can read rows of k columns in groups of this length."""
    return _columns(k, group if groups > 1 else _lanes(k)) is not None


def grouped_product(
    x: Array,
    fields: tuple[Array, ...],
    scale: Array | None = None,
    zero: Array | None = None,
    low: Array | None = None,
    levels: Array | None = None,
    *,
    shifts: tuple[tuple[int, int], ...],
    group: int,
    values: Callable[..., Array],
    scales: Callable[[Array], Array] | None = None,
    unit: Array | float = 1.0,
    precision=None,
    dtype: DTypeLike = jnp.float32,
    interpret: bool = False,
) -> Array:
    """x (m, k) times the rows of a packed weight: (m, n) of `dtype`, summed in f32.

    `fields` are bit fields (n·width/8, k) uint8 of `shifts` (width, shift), each byte holding
    neighbours of a column, lowest bits first, or for 8 bits code − 128 as int8. `values` says what
    int32 codes stand for, in f32. `scale` (groups, n) is a float, or bytes that `scales` reads from
    int32. With `zero` (groups, n) int8 a weight is (value − zero) · scale, with a float `low`
    (groups, n) it is value · scale + low. `unit` multiplies the whole. Where each group has its own
    `levels` (count, groups, n), instead of a scale, `values` is also given those of a group, each
    (rows, 1).
    """
    from jax.experimental import pallas as pl  # a tenth of a second, so not with jaxmem
    from jax.experimental.pallas import tpu as pltpu

    (m, k), (groups, n) = x.shape, (scale if levels is None else levels).shape[-2:]
    group = group if groups > 1 else _lanes(k)
    columns = _columns(k, group)
    blocks, once = -(-k // columns), pl.Buffered(1)
    inputs = min(m, INPUTS, max(32, BYTES // (_lanes(k) * x.dtype.itemsize) // 32 * 32))
    part = lambda width: pl.BlockSpec((ROWS * width // 8, columns), lambda i, j, c: (j, c))
    per_group = lambda a: pl.BlockSpec((len(a) // blocks, ROWS), lambda i, j, c: (c, j))
    flat = None if levels is None else levels.swapaxes(0, 1).reshape(-1, n)
    if blocks > 1:  # a block of bytes would have to hold 32 groups or a multiple
        zero = None if zero is None else zero.astype(jnp.bfloat16)
        scale = scale.astype(jnp.int16) if scales else scale
    more = {"scale": scale, "zero": zero, "low": low, "levels": flat}
    more = {name: _readable(a) for name, a in more.items() if a is not None}
    how = dict(k=k, shifts=shifts, group=group, values=values, precision=precision)
    given = list(fields), more
    out = jax.ShapeDtypeStruct((m, n), dtype)
    y = pl.pallas_call(
        functools.partial(_body, scales=scales, **how),
        out_shape=out,
        grid=(pl.cdiv(m, inputs), pl.cdiv(n, ROWS), blocks),
        in_specs=[
            # whole rows, fetched once: not again for each block of the weight's rows
            pl.BlockSpec((inputs, blocks * columns), lambda i, j, c: (i, 0), pipeline_mode=once),
            [part(width) for width, _ in shifts],
            {name: per_group(a) for name, a in more.items()},
        ],
        out_specs=pl.BlockSpec((inputs, ROWS), lambda i, j, c: (i, j)),
        scratch_shapes=[
            pltpu.VMEM((ROWS, LANES), jnp.int32),
            pltpu.VMEM((inputs, ROWS), jnp.float32),
        ],
        cost_estimate=cost(x, given, out, rows=inputs, flops=2 * m * k * n),
        interpret=interpret,
    )(x, *given)
    return y if isinstance(unit, float) and unit == 1 else (y * unit).astype(dtype)


def _lanes(k):
    """A row of k columns filled up to whole lanes: the group of one scale a row."""
    return -(-k // LANES) * LANES


def _columns(k: int, group: int) -> int | None:
    """Columns in a block: all, or a divisor of k that holds whole groups by the eight."""
    if group % LANES and LANES % group:
        return None
    if k <= COLUMNS:
        return _lanes(k)
    unit = math.lcm(8 * group, LANES)
    return next((c for c in range(COLUMNS - COLUMNS % unit, 0, -unit) if k % c == 0), None)


def _body(
    x_ref,
    field_refs,
    more,
    y_ref,
    codes_ref,
    sum_ref,
    *,
    k,
    shifts,
    group,
    values,
    scales,
    precision,
):
    from jax.experimental import pallas as pl

    block = pl.program_id(2)
    by = {name: _floats(ref) for name, ref in more.items() if name != "scale" or not scales}
    if scales:
        by["scale"] = scales(more["scale"][...].astype(jnp.int32))
    total = jnp.where(block == 0, 0.0, sum_ref[...])
    columns = field_refs[0].shape[1]
    for start in range(0, columns, LANES):
        here = pl.ds(start, LANES)
        for i, (ref, (width, shift)) in enumerate(zip(field_refs, shifts)):
            packed = ref[:, here].astype(jnp.int32)
            count = 8 // width
            for j in range(count):
                part = packed if width == 8 else (packed >> width * j & (1 << width) - 1) << shift
                to = (pl.ds(j, ROWS // count, stride=count), slice(None))
                codes_ref[to] = part + codes_ref[to] if i else part
        w = None if "levels" in by else values(codes_ref[...]).astype(x_ref.dtype)
        x = x_ref[:, pl.ds(pl.multiple_of(block * columns + start, LANES), LANES)]
        at = lax.broadcasted_iota(jnp.int32, x.shape, 1) + start
        for g in range(start // group, -(-min(start + LANES, columns) // group)):
            first, last = max(g * group, start), min((g + 1) * group, start + LANES, k)
            if last <= first:
                continue
            whole = last - first == LANES
            mine = x if whole else jnp.where((at >= first) & (at < last), x, jnp.zeros_like(x))
            if "levels" in by:
                w = values(codes_ref[...], _table(by["levels"], g, shifts)).astype(x.dtype)
            dims = (((1,), (1,)), ((), ()))
            y = lax.dot_general(mine, w, dims, precision, preferred_element_type=jnp.float32)
            if "zero" in by or "low" in by:
                fed = mine.astype(jnp.float32).sum(1, keepdims=True)
            if "zero" in by:
                y -= fed * by["zero"][g : g + 1]
            total += y * by["scale"][g : g + 1] if "scale" in by else y
            if "low" in by:
                total += fed * by["low"][g : g + 1]
    sum_ref[...] = total
    y_ref[...] = total.astype(y_ref.dtype)


def _table(levels, g, shifts):
    """The levels of group g, each a column (rows, 1)."""
    count = 1 << sum(width for width, _ in shifts)
    columns = levels[g * count : (g + 1) * count].T
    return [columns[:, i : i + 1] for i in range(count)]


def _readable(a):
    """`a`, an f16 array as its bits."""
    return lax.bitcast_convert_type(a, jnp.int16) if a.dtype == jnp.float16 else a


def _floats(ref):
    """The numbers of an array that was made `_readable`, in f32."""
    a = ref[...]
    half = a.dtype == jnp.int16
    return from_half_bits(a.astype(jnp.int32)) if half else a.astype(jnp.float32)


def from_half_bits(bits):
    """The f32 of f16 bits in int32 (sign extended): a TPU has no f16."""
    size = bits & 0x7FFF
    normal = lax.bitcast_convert_type((size << 13) + (112 << 23), jnp.float32)
    number = jnp.where(size < 1 << 10, size.astype(jnp.float32) * 2.0**-24, normal)
    return jnp.where(bits < 0, -number, number)
