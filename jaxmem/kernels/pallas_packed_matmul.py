"""y = Σ_g (x_g · values_gᵀ) · scale_g on a TPU: codes are unpacked on the chip, block by block.

XLA has no such fusion: it would write decoded blocks to memory first, read the codes once for each
part of a byte, or, summing over groups, spend four times the cycles. This kernel unpacks 256 rows
by 128 columns at a time into on-chip memory, multiplies them, and scales the product; of the weight
it reads only the packed codes and the scales from HBM.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from .dispatch import on_one_device, product_like
from .pallas_cost_estimate import cost

LANES = 128  # columns unpacked at a time: the width of the chip's registers and of its matrix unit
BLOCK_ROWS = 256  # rows of the weight in a block: 32 bytes of the narrowest field
MAX_BLOCK_COLUMNS = 8192  # columns of the weight in a block
MAX_X_ROWS, MAX_X_BYTES = 256, 2**23  # rows and bytes of x on the chip at a time


def packed_product(x: Array, leaf: Any, otherwise: Callable, precision=None) -> Array:
    """x (m, k) times the rows of a leaf: (m, n) f32, by the kernel on one TPU chip.

    `leaf.on_chip()` gives the arguments of `grouped_product`. On other devices, and for rows that
    the kernel does not support, the result is `otherwise(x, leaf)`. The codes of a `StackLayer` are
    read in their stack.
    """
    arguments = _arguments(leaf)
    groups = (arguments["levels"] if "levels" in arguments else arguments["scale"]).shape[-2]
    if not supports(x.shape[1], arguments["group"], groups):
        return otherwise(x, leaf)
    kernel = lambda x, leaf: grouped_product(x, **_arguments(leaf), precision=precision)
    return on_one_device(kernel, otherwise, x, leaf, like=product_like(x, leaf))


def supports(k: int, group: int, groups: int = 2) -> bool:
    """Whether the kernel can read rows of k columns in `groups` groups of length `group`.

    Example:
        >>> supports(4096, 128), supports(4096, 96)
        (True, False)
    """
    return _block_columns(k, group if groups > 1 else _whole_lanes(k)) is not None


def grouped_product(
    x: Array,
    fields: tuple[Array, ...],
    scale: Array | None = None,
    zero: Array | None = None,
    low: Array | None = None,
    levels: Array | None = None,
    layer: Array | None = None,
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

    A weight is value · scale; with `zero` it is (value − zero) · scale, with `low` it is
    value · scale + low, with `levels` it is a level of its group.

    Args:
        x: (m, k).
        fields: the bit fields of the codes, each (n · width/8, k) uint8. A byte holds neighbours of
            a column, lowest bits first. A field of 8 bits holds code − 128 as int8.
        scale: (groups, n) floats, or bytes that `scales` reads.
        zero: (groups, n) int8.
        low: (groups, n) floats.
        levels: (count, groups, n) floats, in place of a scale.
        layer: () int32, if the fields are stacks (layers, n · width/8, k): which layer is read.
        shifts: (width, shift) in bits of each field.
        group: columns that share a scale.
        values: gives the f32 number of each int32 code (rows, columns). With `levels` it is also
            given the levels of the group, each (rows, 1).
        scales: gives the f32 number of each int32 byte of `scale`.
        unit: a factor of the whole product.
        precision: precision of the products, as `lax.dot_general` takes it.
        dtype: dtype of the result.
        interpret: whether Pallas interprets the kernel, which runs on a CPU too.
    """
    from jax.experimental import pallas as pl  # a tenth of a second, so not with jaxmem
    from jax.experimental.pallas import tpu as pltpu

    (m, k), (groups, n) = x.shape, (scale if levels is None else levels).shape[-2:]
    # Choose the blocks: how many columns of the weight, how many rows of x.
    group = group if groups > 1 else _whole_lanes(k)
    columns = _block_columns(k, group)
    blocks = -(-k // columns)
    x_rows = min(
        m, MAX_X_ROWS, max(32, MAX_X_BYTES // (_whole_lanes(k) * x.dtype.itemsize) // 32 * 32)
    )
    first = () if layer is None else (layer.reshape(1),)  # what the index maps read
    in_stack = lambda shape, index: pl.BlockSpec(
        (*(None for _ in first), *shape), lambda i, j, c, *at: (*(a[0] for a in at), *index(j, c))
    )
    packed = lambda width: in_stack((BLOCK_ROWS * width // 8, columns), lambda j, c: (j, c))
    per_group = lambda a: pl.BlockSpec((len(a) // blocks, BLOCK_ROWS), lambda i, j, c, *_: (c, j))

    # Bring the numbers of each group into dtypes that a block of them may have on a TPU.
    flat = None if levels is None else levels.swapaxes(0, 1).reshape(-1, n)
    if blocks > 1:  # a block of bytes would have to hold 32 groups or a multiple
        zero = None if zero is None else zero.astype(jnp.bfloat16)
        scale = scale.astype(jnp.int16) if scales else scale
    numbers = {"scale": scale, "zero": zero, "low": low, "levels": flat}
    numbers = {name: _readable(a) for name, a in numbers.items() if a is not None}

    options = dict(k=k, shifts=shifts, group=group, values=values, precision=precision)
    weight = list(fields), numbers
    read = [jax.ShapeDtypeStruct(a.shape[-2:], a.dtype) for a in fields], numbers
    body = functools.partial(_body, scales=scales, **options)
    out = jax.ShapeDtypeStruct((m, n), dtype)
    grid = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=len(first),
        grid=(pl.cdiv(m, x_rows), pl.cdiv(n, BLOCK_ROWS), blocks),
        in_specs=[
            # whole rows of x, fetched once and not again for each block of the weight's rows
            pl.BlockSpec(
                (x_rows, blocks * columns),
                lambda i, j, c, *_: (i, 0),
                pipeline_mode=pl.Buffered(1),
            ),
            [packed(width) for width, _ in shifts],
            {name: per_group(a) for name, a in numbers.items()},
        ],
        out_specs=pl.BlockSpec((x_rows, BLOCK_ROWS), lambda i, j, c, *_: (i, j)),
        scratch_shapes=[
            pltpu.VMEM((BLOCK_ROWS, LANES), jnp.int32),  # codes
            pltpu.VMEM((x_rows, BLOCK_ROWS), jnp.float32),  # the sum over blocks of columns
        ],
    )
    y = pl.pallas_call(
        lambda *refs: body(*refs[len(first) :]),
        out_shape=out,
        grid_spec=grid,
        cost_estimate=cost(x, read, out, rows=x_rows, flops=2 * m * k * n),
        interpret=interpret,
        name="grouped_product",
    )(*first, x, *weight)
    return y if isinstance(unit, float) and unit == 1 else (y * unit).astype(dtype)


def _arguments(leaf):
    """The arguments of `grouped_product` for an unstacked leaf or a `StackLayer`."""
    stack, layer = leaf.in_stack()
    if layer is None:
        return leaf.on_chip()
    # Numbers of groups are few, and are sliced; for codes of 8 bits XLA would copy the slice.
    return leaf.slice_of_stack().on_chip() | {"fields": stack.codes, "layer": layer}


def _whole_lanes(k: int) -> int:
    """k columns rounded up to whole lanes: the group where a row has one scale."""
    return -(-k // LANES) * LANES


def _block_columns(k: int, group: int) -> int | None:
    """The columns of a block: all k, or a divisor of k that holds a multiple of 8 groups.

    None where the kernel cannot read such groups.
    """
    if group % LANES and LANES % group:
        return None
    if k <= MAX_BLOCK_COLUMNS:
        return _whole_lanes(k)
    unit = math.lcm(8 * group, LANES)
    most = MAX_BLOCK_COLUMNS - MAX_BLOCK_COLUMNS % unit
    return next((c for c in range(most, 0, -unit) if k % c == 0), None)


def _body(
    x_ref,
    field_refs,
    number_refs,
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
    """One block of the weight: adds its part of the product to `sum_ref`.

    Shapes: x_ref (x_rows, padded k), codes_ref (BLOCK_ROWS, LANES) int32, sum_ref and y_ref
    (x_rows, BLOCK_ROWS), number_refs (groups of the block, BLOCK_ROWS) each.
    """
    from jax.experimental import pallas as pl

    # Read the numbers of the block's groups.
    block = pl.program_id(2)
    numbers = {
        name: _floats(ref) for name, ref in number_refs.items() if name != "scale" or not scales
    }
    if scales:
        numbers["scale"] = scales(number_refs["scale"][...].astype(jnp.int32))
    total = jnp.where(block == 0, 0.0, sum_ref[...])
    columns = field_refs[0].shape[1]
    for start in range(0, columns, LANES):
        # Unpack the codes of LANES columns.
        lanes = pl.ds(start, LANES)
        for i, (ref, (width, shift)) in enumerate(zip(field_refs, shifts)):
            packed = ref[:, lanes].astype(jnp.int32)
            count = 8 // width
            for j in range(count):
                part = packed if width == 8 else (packed >> width * j & (1 << width) - 1) << shift
                rows = (pl.ds(j, BLOCK_ROWS // count, stride=count), slice(None))
                codes_ref[rows] = part + codes_ref[rows] if i else part
        # Multiply them, group by group: x is 0 outside the group.
        w = None if "levels" in numbers else values(codes_ref[...]).astype(x_ref.dtype)
        x = x_ref[:, pl.ds(pl.multiple_of(block * columns + start, LANES), LANES)]
        column = lax.broadcasted_iota(jnp.int32, x.shape, 1) + start
        for g in range(start // group, -(-min(start + LANES, columns) // group)):
            first, last = max(g * group, start), min((g + 1) * group, start + LANES, k)
            if last <= first:
                continue
            group_x = x
            if last - first < LANES:
                inside = (column >= first) & (column < last)
                group_x = jnp.where(inside, x, jnp.zeros_like(x))
            if "levels" in numbers:
                codes = codes_ref[...]
                w = values(codes, _group_levels(numbers["levels"], g, shifts)).astype(x.dtype)
            dims = (((1,), (1,)), ((), ()))
            y = lax.dot_general(group_x, w, dims, precision, preferred_element_type=jnp.float32)
            if "zero" in numbers or "low" in numbers:
                x_sum = group_x.astype(jnp.float32).sum(1, keepdims=True)
            if "zero" in numbers:
                y -= x_sum * numbers["zero"][g : g + 1]
            total += y * numbers["scale"][g : g + 1] if "scale" in numbers else y
            if "low" in numbers:
                total += x_sum * numbers["low"][g : g + 1]
    sum_ref[...] = total
    y_ref[...] = total.astype(y_ref.dtype)


def _group_levels(levels, g, shifts):
    """The levels of group g, each a column (rows, 1); `levels` is (groups · count, rows)."""
    count = 1 << sum(width for width, _ in shifts)
    columns = levels[g * count : (g + 1) * count].T
    return [columns[:, i : i + 1] for i in range(count)]


def _readable(a):
    """`a`, but an f16 array as its bits in int16: a TPU has no f16."""
    return lax.bitcast_convert_type(a, jnp.int16) if a.dtype == jnp.float16 else a


def _floats(ref):
    """The numbers in f32 of an array that `_readable` gave; int16 are bits of f16."""
    a = ref[...]
    is_half = a.dtype == jnp.int16
    return from_half_bits(a.astype(jnp.int32)) if is_half else a.astype(jnp.float32)


def from_half_bits(bits: Array) -> Array:
    """The f32 numbers of f16 bits in int32, sign extended: a TPU has no f16."""
    magnitude = bits & 0x7FFF
    normal = lax.bitcast_convert_type((magnitude << 13) + (112 << 23), jnp.float32)
    is_subnormal = magnitude < 1 << 10
    number = jnp.where(is_subnormal, magnitude.astype(jnp.float32) * 2.0**-24, normal)
    return jnp.where(bits < 0, -number, number)
