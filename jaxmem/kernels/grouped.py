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

from .choosing import on_one_chip

LANES = 128  # columns unpacked at a time: the width of the chip's registers and of its matrix unit
ROWS = 256  # rows of the weight at a time: 32 bytes of the narrowest field
COLUMNS = 8192  # of a row at a time, at most
INPUTS = 2**20  # elements of x on the chip at a time


def packed_product(x: Array, leaf: Any, otherwise: Callable, precision=None) -> Array:
    """x (m, k) . rows^T (m, n) f32: on one TPU chip by the kernel where it can read the rows.

    `leaf.on_chip()` gives what `grouped_product` takes; elsewhere it is `otherwise(x, leaf)`.
    """
    how = leaf.on_chip()
    read = how.get("scales") or how["scale"].dtype == jnp.float16  # an imported scale may be wider
    if not read or not suits(x.shape[1], how["group"], len(how["scale"])):
        return otherwise(x, leaf)
    kernel = lambda x, leaf: grouped_product(x, **leaf.on_chip(), precision=precision)
    return on_one_chip(kernel, otherwise, x, leaf)


def suits(k: int, group: int, groups: int = 2) -> bool:
    """Whether the kernel can read rows of k columns in groups of this length."""
    return _columns(k, group if groups > 1 else _lanes(k)) is not None


def grouped_product(
    x: Array,
    fields: tuple[Array, ...],
    scale: Array,
    zero: Array | None = None,
    low: Array | None = None,
    *,
    shifts: tuple[tuple[int, int], ...],
    group: int,
    values: Callable[[Array], Array],
    scales: Callable[[Array], Array] | None = None,
    unit: Array | float = 1.0,
    precision=None,
    dtype: DTypeLike = jnp.float32,
    interpret: bool = False,
) -> Array:
    """x (m, k) times the rows of a packed weight: (m, n) of `dtype`, summed in f32.

    `fields` are bit fields (n·width/8, k) uint8 of `shifts` (width, shift), each byte holding
    neighbours of a column, lowest bits first, or for 8 bits code − 128 as int8. `values` says what
    int32 codes stand for, in f32. `scale` (groups, n) is f16, not negative, or bytes that `scales`
    reads from int32. With `zero` (groups, n) int8 a weight is (value − zero) · scale, with `low`
    (groups, n) f16 it is value · scale + low. `unit` multiplies the whole.
    """
    from jax.experimental import pallas as pl  # a tenth of a second, so not with jaxmem
    from jax.experimental.pallas import tpu as pltpu

    (m, k), (groups, n) = x.shape, scale.shape
    group = group if groups > 1 else _lanes(k)
    columns = _columns(k, group)
    blocks = -(-k // columns)
    inputs = min(m, max(128, INPUTS // columns // 128 * 128))
    part = lambda width: pl.BlockSpec((ROWS * width // 8, columns), lambda i, j, c: (j, c))
    per_group = pl.BlockSpec((groups // blocks, ROWS), lambda i, j, c: (c, j))
    bits = lambda a: lax.bitcast_convert_type(a, jnp.int16) if a.dtype == jnp.float16 else a
    more = {"zero": zero, "low": None if low is None else bits(low)}
    more = {name: a for name, a in more.items() if a is not None}
    how = dict(k=k, shifts=shifts, group=group, values=values, precision=precision)
    y = pl.pallas_call(
        functools.partial(_body, scales=scales or from_half_bits, **how),
        out_shape=jax.ShapeDtypeStruct((m, n), dtype),
        grid=(pl.cdiv(m, inputs), pl.cdiv(n, ROWS), blocks),
        in_specs=[
            pl.BlockSpec((inputs, columns), lambda i, j, c: (i, c)),
            [part(width) for width, _ in shifts],
            per_group,
            {name: per_group for name in more},
        ],
        out_specs=pl.BlockSpec((inputs, ROWS), lambda i, j, c: (i, j)),
        scratch_shapes=[
            pltpu.VMEM((ROWS, LANES), jnp.int32),
            pltpu.VMEM((inputs, ROWS), jnp.float32),
        ],
        interpret=interpret,
    )(x, list(fields), bits(scale), more)
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
    scale_ref,
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
    scale = scales(scale_ref[...].astype(jnp.int32))
    low = from_half_bits(more["low"][...].astype(jnp.int32)) if "low" in more else None
    total = jnp.where(block == 0, 0.0, sum_ref[...])
    columns = x_ref.shape[1]
    for start in range(0, columns, LANES):
        here = pl.ds(start, LANES)
        for i, (ref, (width, shift)) in enumerate(zip(field_refs, shifts)):
            packed = ref[:, here].astype(jnp.int32)
            count = 8 // width
            for j in range(count):
                part = packed if width == 8 else (packed >> width * j & (1 << width) - 1) << shift
                to = (pl.ds(j, ROWS // count, stride=count), slice(None))
                codes_ref[to] = part + codes_ref[to] if i else part
        w = values(codes_ref[...]).astype(x_ref.dtype)
        x = x_ref[:, here]
        at = lax.broadcasted_iota(jnp.int32, x.shape, 1) + start
        for g in range(start // group, -(-min(start + LANES, columns) // group)):
            first, last = max(g * group, start), min((g + 1) * group, start + LANES, k)
            if last <= first:
                continue
            whole = last - first == LANES
            mine = x if whole else jnp.where((at >= first) & (at < last), x, jnp.zeros_like(x))
            dims = (((1,), (1,)), ((), ()))
            y = lax.dot_general(mine, w, dims, precision, preferred_element_type=jnp.float32)
            if more:
                fed = mine.astype(jnp.float32).sum(1, keepdims=True)
            if "zero" in more:
                y -= fed * more["zero"][g : g + 1].astype(jnp.float32)
            total += y * scale[g : g + 1]
            if low is not None:
                total += fed * low[g : g + 1]
    sum_ref[...] = total
    y_ref[...] = total.astype(y_ref.dtype)


def from_half_bits(bits):
    """The f32 of f16 bits in int32 (sign extended): a TPU has no f16."""
    size = bits & 0x7FFF
    normal = lax.bitcast_convert_type((size << 13) + (112 << 23), jnp.float32)
    number = jnp.where(size < 1 << 10, size.astype(jnp.float32) * 2.0**-24, normal)
    return jnp.where(bits < 0, -number, number)
