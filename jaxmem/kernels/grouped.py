"""y = Σ_g (x_g · codes_gᵀ) · scale_g on a TPU: codes are unpacked on the chip, block by block.

XLA has no such fusion: it would write decoded blocks to memory first, or, summing over groups,
spend four times the cycles. Here 256 rows by 128 columns are unpacked into on-chip memory at a
time, multiplied, and scaled after the product; HBM sees the packed codes and nothing else.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

LANES = 128  # columns unpacked at a time: the width of the chip's registers and of its matrix unit
ROWS = 256  # rows of the weight at a time: 32 bytes of the narrowest field
COLUMNS = 8192  # of a row at a time, at most
INPUTS = 2**20  # elements of x on the chip at a time


def suits(k: int, group: int) -> bool:
    """Whether the kernel can read rows of k columns in groups of this length."""
    return _columns(k, group) is not None


def grouped_product(
    x: Array,
    fields: tuple[Array, ...],
    scale: Array,
    zero: Array | None,
    *,
    shifts: tuple[tuple[int, int], ...],
    group: int,
    precision=None,
    dtype: DTypeLike = jnp.float32,
    interpret: bool = False,
) -> Array:
    """x (m, k) times the rows of a packed integer weight: (m, n) of `dtype`, summed in f32.

    `fields` are bit fields (n·width/8, k) uint8 of `shifts` (width, shift), each byte holding
    neighbours of a column, lowest bits first, or for 8 bits code − 128 as int8; `scale` (groups, n)
    is f16, not negative; `zero` (groups, n) int8, or None for codes about the middle.
    """
    from jax.experimental import pallas as pl  # a tenth of a second, so not with jaxmem
    from jax.experimental.pallas import tpu as pltpu

    (m, k), (groups, n) = x.shape, scale.shape
    columns = _columns(k, group)
    blocks = -(-k // columns)
    inputs = min(m, max(128, INPUTS // columns // 128 * 128))
    part = lambda width: pl.BlockSpec((ROWS * width // 8, columns), lambda i, j, c: (j, c))
    per_group = pl.BlockSpec((groups // blocks, ROWS), lambda i, j, c: (c, j))
    zeros = () if zero is None else (zero,)
    bits = sum(width for width, _ in shifts)
    centre = 0 if zeros or bits == 8 else 1 << bits - 1
    return pl.pallas_call(
        functools.partial(
            _body, k=k, shifts=shifts, group=group, centre=centre, precision=precision
        ),
        out_shape=jax.ShapeDtypeStruct((m, n), dtype),
        grid=(pl.cdiv(m, inputs), pl.cdiv(n, ROWS), blocks),
        in_specs=[
            pl.BlockSpec((inputs, columns), lambda i, j, c: (i, c)),
            [part(width) for width, _ in shifts],
            per_group,
            *(per_group for _ in zeros),
        ],
        out_specs=pl.BlockSpec((inputs, ROWS), lambda i, j, c: (i, j)),
        scratch_shapes=[
            pltpu.VMEM((ROWS, LANES), jnp.int32),
            pltpu.VMEM((inputs, ROWS), jnp.float32),
        ],
        interpret=interpret,
    )(x, list(fields), lax.bitcast_convert_type(scale, jnp.int16), *zeros)


def _columns(k: int, group: int) -> int | None:
    """Columns in a block: all, or a divisor of k that holds whole groups by the eight."""
    if group % LANES and LANES % group:
        return None
    if k <= COLUMNS:
        return -(-k // LANES) * LANES
    unit = math.lcm(8 * group, LANES)
    return next((c for c in range(COLUMNS - COLUMNS % unit, 0, -unit) if k % c == 0), None)


def _body(x_ref, field_refs, scale_ref, *refs, k, shifts, group, centre, precision):
    from jax.experimental import pallas as pl

    *zero_ref, y_ref, codes_ref, sum_ref = refs
    block = pl.program_id(2)
    scale = _from_half_bits(scale_ref[...])
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
                codes_ref[to] = part + (codes_ref[to] if i else -centre)
        w = codes_ref[...].astype(jnp.float32).astype(x_ref.dtype)
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
            if zero_ref:
                zero = zero_ref[0][g : g + 1].astype(jnp.float32)
                y -= mine.astype(jnp.float32).sum(1, keepdims=True) * zero
            total += y * scale[g : g + 1]
    sum_ref[...] = total
    y_ref[...] = total.astype(y_ref.dtype)


def _from_half_bits(bits):
    """The f32 of non-negative f16 bits: a TPU has no f16."""
    bits = bits.astype(jnp.int32)
    normal = lax.bitcast_convert_type((bits << 13) + (112 << 23), jnp.float32)
    return jnp.where(bits < 1 << 10, bits.astype(jnp.float32) * 2.0**-24, normal)
