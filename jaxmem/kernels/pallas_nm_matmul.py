"""y = Σ_p x[:, p::m] · w_pᵀ on a TPU, w_p the weights at place p of m neighbours, n of them kept.

XLA has no such fusion: it writes decoded tiles to memory. This kernel spreads a tile on the chip.
The n kept values of a group lie side by side. A product with a matrix of zeros and ones separates
them exactly into n planes, and the group's pattern says at which of the m places each stands. The
packed form is read from HBM once.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from .pallas_cost_estimate import cost
from .pallas_packed_matmul import BLOCK_ROWS, LANES, from_half_bits

X_ELEMENTS = 2**20  # the most elements of x on the chip at a time
MAX_VALUE_BYTES = 2**22  # the most bytes of the kept values of BLOCK_ROWS rows
MAX_KEPT = 4  # the most kept values of a group
_LAST = (((1,), (1,)), ((), ()))  # both operands summed over their last axis


def supports(n: int, groups: int, values: Any) -> bool:
    """Whether the kernel can read rows of so many groups with `n` kept values each.

    `values` is the array of kept values (outputs, n · groups), or the dict of `on_chip`.

    Example:
        >>> supports(2, 1024, jnp.ones((256, 2048))), supports(2, 64, jnp.ones((256, 128)))
        (True, False)
    """
    if n > MAX_KEPT or groups < LANES or groups > X_ELEMENTS // LANES // MAX_KEPT:
        return False
    if isinstance(values, dict):
        plain = not {"scales", "low", "unit"} & {k for k, v in values.items() if v is not None}
        half = values["scale"].dtype == jnp.float16
        return plain and half and (len(values["scale"]) == 1 or values["group"] % n == 0)
    return BLOCK_ROWS * n * groups * values.dtype.itemsize <= MAX_VALUE_BYTES


def nm_product(
    x: Array,
    fields: tuple[Array, ...],
    values: Any,
    *,
    shifts: tuple[tuple[int, int], ...],
    n: int,
    m: int,
    spread: Callable[[Array, list[Array], int], list[Array]],
    precision=None,
    interpret: bool = False,
) -> Array:
    """x (rows, k) times an n:m weight: (rows, outputs) f32.

    Args:
        x: (rows, k), k = m · groups.
        fields: the bit fields of the pattern numbers (outputs, groups), packed along the outputs as
            the codes of `grouped_product`.
        values: the kept values (outputs, n · groups), or a dict of what `grouped_product` takes
            for them.
        shifts: (width, shift) in bits of each field.
        n: the kept weights of a group.
        m: the weights of a group.
        spread: (pattern numbers, n planes of kept values, m) -> m planes of weights, each
            (BLOCK_ROWS, LANES).
        precision: precision of the products, as `lax.dot_general` takes it.
        interpret: whether Pallas interprets the kernel, which runs on a CPU too.
    """
    from jax.experimental import pallas as pl  # a tenth of a second, so not with jaxmem
    from jax.experimental.pallas import tpu as pltpu

    groups = fields[0].shape[1]
    padded_groups = -(-groups // LANES) * LANES
    coded = isinstance(values, dict)
    outputs = values["scale"].shape[-1] if coded else len(values)

    # x as a plane for each place of a group: (m, rows, groups)
    x = jnp.pad(x.reshape(len(x), groups, m), ((0, 0), (0, padded_groups - groups), (0, 0)))
    x = x.transpose(2, 0, 1)
    x_rows = min(x.shape[1], max(8, X_ELEMENTS // (m * padded_groups) // LANES * LANES))

    # The kept values are floats, or codes with scales and zeros.
    packed = lambda shifts, columns: [
        pl.BlockSpec((BLOCK_ROWS * width // 8, columns), lambda i, j: (j, 0)) for width, _ in shifts
    ]
    if coded:
        bits = lambda a: lax.bitcast_convert_type(a, jnp.int16) if a.dtype == jnp.float16 else a
        numbers = {name: bits(a) for name in ("scale", "zero") if (a := values[name]) is not None}
        per_group = pl.BlockSpec((len(values["scale"]), BLOCK_ROWS), lambda i, j: (0, j))
        value_arrays = list(values["fields"]), numbers
        value_specs = (
            packed(values["shifts"], n * padded_groups),
            dict.fromkeys(numbers, per_group),
        )
        length = values["group"] // n if len(values["scale"]) > 1 else padded_groups
        read = functools.partial(_read_codes, values=values, length=length)
    else:
        value_arrays = values
        value_specs = pl.BlockSpec((BLOCK_ROWS, n * padded_groups), lambda i, j: (j, 0))
        read = _read_floats

    def body(x_ref, field_refs, value_refs, y_ref, numbers_ref, codes_ref):
        total = jnp.zeros(y_ref.shape, jnp.float32)
        separator = _separator(n)
        for start in range(0, padded_groups, LANES):  # LANES groups at a time
            _unpack(numbers_ref, field_refs, shifts, slice(start, start + LANES))
            kept = read(value_refs, codes_ref, start, groups - start, n, separator)
            for p, weights in enumerate(spread(numbers_ref[...], kept, m)):
                x_plane = x_ref[p, :, start : start + LANES]
                options = dict(precision=precision, preferred_element_type=jnp.float32)
                total += lax.dot_general(x_plane, weights.astype(x_plane.dtype), _LAST, **options)
        y_ref[...] = total

    out = jax.ShapeDtypeStruct((x.shape[1], outputs), jnp.float32)
    weight = list(fields), value_arrays
    return pl.pallas_call(
        body,
        out_shape=out,
        grid=(pl.cdiv(x.shape[1], x_rows), pl.cdiv(outputs, BLOCK_ROWS)),
        in_specs=[
            pl.BlockSpec((m, x_rows, padded_groups), lambda i, j: (0, i, 0)),
            packed(shifts, padded_groups),
            value_specs,
        ],
        out_specs=pl.BlockSpec((x_rows, BLOCK_ROWS), lambda i, j: (i, j)),
        scratch_shapes=[
            pltpu.VMEM((BLOCK_ROWS, LANES), jnp.int32),  # pattern numbers
            pltpu.VMEM((BLOCK_ROWS, LANES), jnp.int32),  # codes
        ],
        cost_estimate=cost(x, weight, out, rows=x_rows, flops=2 * x.size * outputs),
        interpret=interpret,
    )(x, *weight)


def _unpack(ref, fields, shifts, columns):
    """Writes the codes of some columns to `ref` (BLOCK_ROWS, LANES), int32."""
    from jax.experimental import pallas as pl

    for i, (field, (width, shift)) in enumerate(zip(fields, shifts)):
        byte, count = field[:, columns].astype(jnp.int32), 8 // width
        for j in range(count):
            part = byte if width == 8 else (byte >> width * j & (1 << width) - 1) << shift
            rows = (pl.ds(j, BLOCK_ROWS // count, stride=count), slice(None))
            ref[rows] = part + ref[rows] if i else part


def _read_floats(ref, _, start, left, n, separator):
    """The n kept values of LANES groups from group `start` on, each (BLOCK_ROWS, LANES) f32.

    Only `left` groups are there; what is read past them may be NaN.
    """
    side_by_side = ref[:, n * start : n * (start + LANES)]
    inside = lax.broadcasted_iota(jnp.int32, side_by_side.shape, 1) < n * left
    return _separated(jnp.where(inside, side_by_side, jnp.zeros_like(side_by_side)), separator, n)


def _read_codes(refs, codes_ref, start, left, n, separator, *, values, length):
    """The same planes as `_read_floats` gives, from codes with a scale for each `length` groups."""
    fields, numbers = refs
    # Unpack the codes of n values of LANES groups, and separate them.
    side_by_side = []
    for first in range(n * start, n * (start + LANES), LANES):
        _unpack(codes_ref, fields, values["shifts"], slice(first, first + LANES))
        side_by_side.append(codes_ref[...].astype(jnp.float32))
    kept = _separated(jnp.concatenate(side_by_side, 1), separator, n)
    # Give each lane the scale and the zero of its group; 0 past the last group.
    scales = from_half_bits(numbers["scale"][...].astype(jnp.int32))  # (scales, BLOCK_ROWS)
    group = lax.broadcasted_iota(jnp.int32, (len(scales), LANES), 1) + start
    scale_index = lax.div(group, jnp.int32(length))  # `//` asks which TPU this is
    chosen = scale_index == lax.broadcasted_iota(jnp.int32, scale_index.shape, 0)
    scale = _selected(scales, chosen, 0)
    scale = jnp.where(lax.broadcasted_iota(jnp.int32, scale.shape, 1) < left, scale, 0.0)
    zero = 0.0
    if "zero" in numbers:
        zero = _selected(numbers["zero"][...].astype(jnp.float32), chosen, 0)
    return [(values["values"](v.astype(jnp.int32)) - zero) * scale for v in kept]


def _separator(n: int) -> Array:
    """(n · LANES, n · LANES): whether value i of group g goes from n · g + i to i · LANES + g."""
    size = (n * LANES, n * LANES)
    source, target = (lax.broadcasted_iota(jnp.int32, size, axis) for axis in (0, 1))
    lanes = jnp.int32(LANES)
    return source == lax.rem(target, lanes) * n + lax.div(target, lanes)


def _separated(side_by_side: Array, separator: Array, n: int) -> list[Array]:
    """The n planes (rows, LANES) of values (rows, n · LANES) that lie group by group."""
    kept = _selected(side_by_side, separator)
    return [kept[:, i * LANES : (i + 1) * LANES] for i in range(n)]


def _selected(a: Array, where: Array, axis: int = 1) -> Array:
    """a · where over `axis` of `a`, in f32: `where` has one True a column, so numbers are exact."""
    is_half = a.dtype == jnp.bfloat16
    a = a if is_half else a.astype(jnp.float32)
    ones = where.astype(jnp.float32).astype(a.dtype)
    precision = None if is_half else lax.Precision.HIGHEST
    dims = (((axis,), (0,)), ((), ()))
    return lax.dot_general(a, ones, dims, precision, preferred_element_type=jnp.float32)
