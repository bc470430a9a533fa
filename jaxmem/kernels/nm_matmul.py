"""y = Σ_p x[:, p::m] · w_pᵀ on a TPU, w_p the weights at place p of m neighbours, n of them kept.

XLA has no such fusion: it writes decoded tiles to memory. Here a tile is spread on the chip: kept
values lie beside each other, so a product with a matrix of zeros and ones deals them out, exactly,
and their patterns say at which of the m places each stands. HBM sees the packed form once.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from .cost_estimate import cost
from .packed_matmul import LANES, ROWS, from_half_bits

INPUTS = 2**20  # elements of x on the chip at a time
BYTES = 2**22  # of the kept values of ROWS rows
MOST = 4  # values of a group that are dealt out
_LAST = (((1,), (1,)), ((), ()))


def suits(n: int, groups: int, values: Any) -> bool:
    """Whether the kernel can read groups of `n` kept `values`, an array or what `on_chip` gives."""
    if n > MOST or groups < LANES or groups > INPUTS // LANES // MOST:
        return False
    if isinstance(values, dict):
        plain = not {"scales", "low", "unit"} & {k for k, v in values.items() if v is not None}
        half = values["scale"].dtype == jnp.float16
        return plain and half and (len(values["scale"]) == 1 or values["group"] % n == 0)
    return ROWS * n * groups * values.dtype.itemsize <= BYTES


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
    """x (rows, k) times the outputs of an n:m weight: (rows, outputs) f32.

    `fields` and `shifts` hold a number for each group of m, packed along the outputs as in
    `grouped_product`; `spread(numbers, kept, m)` gives the m planes. `values` (outputs, n · groups)
    are the kept ones, or a dict of what `grouped_product` takes for them.
    """
    from jax.experimental import pallas as pl  # a tenth of a second, so not with jaxmem
    from jax.experimental.pallas import tpu as pltpu

    groups = fields[0].shape[1]
    wide = -(-groups // LANES) * LANES
    coded = isinstance(values, dict)
    outputs = values["scale"].shape[-1] if coded else len(values)
    x = jnp.pad(x.reshape(len(x), groups, m), ((0, 0), (0, wide - groups), (0, 0)))
    x = x.transpose(2, 0, 1)  # (m, rows, groups)
    rows = min(x.shape[1], max(8, INPUTS // (m * wide) // LANES * LANES))
    packed = lambda shifts, columns: [
        pl.BlockSpec((ROWS * width // 8, columns), lambda i, j: (j, 0)) for width, _ in shifts
    ]
    given, specs, read = values, pl.BlockSpec((ROWS, n * wide), lambda i, j: (j, 0)), _plain
    if coded:
        bits = lambda a: lax.bitcast_convert_type(a, jnp.int16) if a.dtype == jnp.float16 else a
        numbers = {name: bits(a) for name in ("scale", "zero") if (a := values[name]) is not None}
        per_group = pl.BlockSpec((len(values["scale"]), ROWS), lambda i, j: (0, j))
        given = list(values["fields"]), numbers
        specs = packed(values["shifts"], n * wide), dict.fromkeys(numbers, per_group)
        length = values["group"] // n if len(values["scale"]) > 1 else wide  # of a group, in lanes
        read = functools.partial(_coded, values=values, length=length)

    def body(x_ref, field_refs, value_refs, y_ref, numbers_ref, codes_ref):
        total = jnp.zeros(y_ref.shape, jnp.float32)
        deal = _dealing(n)
        for start in range(0, wide, LANES):
            _unpack(numbers_ref, field_refs, shifts, slice(start, start + LANES))
            kept = read(value_refs, codes_ref, start, groups - start, n, deal)
            for p, weights in enumerate(spread(numbers_ref[...], kept, m)):
                fed = x_ref[p, :, start : start + LANES]
                how = dict(precision=precision, preferred_element_type=jnp.float32)
                total += lax.dot_general(fed, weights.astype(fed.dtype), _LAST, **how)
        y_ref[...] = total

    out = jax.ShapeDtypeStruct((x.shape[1], outputs), jnp.float32)
    given = list(fields), given
    return pl.pallas_call(
        body,
        out_shape=out,
        grid=(pl.cdiv(x.shape[1], rows), pl.cdiv(outputs, ROWS)),
        in_specs=[
            pl.BlockSpec((m, rows, wide), lambda i, j: (0, i, 0)),
            packed(shifts, wide),
            specs,
        ],
        out_specs=pl.BlockSpec((rows, ROWS), lambda i, j: (i, j)),
        scratch_shapes=[
            pltpu.VMEM((ROWS, LANES), jnp.int32),
            pltpu.VMEM((ROWS, LANES), jnp.int32),
        ],
        cost_estimate=cost(x, given, out, rows=rows, flops=2 * x.size * outputs),
        interpret=interpret,
    )(x, *given)


def _unpack(ref, fields, shifts, columns):
    """Codes of some columns of ROWS rows, int32, as `grouped_product` unpacks them."""
    from jax.experimental import pallas as pl

    for i, (field, (width, shift)) in enumerate(zip(fields, shifts)):
        byte, count = field[:, columns].astype(jnp.int32), 8 // width
        for j in range(count):
            part = byte if width == 8 else (byte >> width * j & (1 << width) - 1) << shift
            to = (pl.ds(j, ROWS // count, stride=count), slice(None))
            ref[to] = part + ref[to] if i else part


def _plain(ref, _, start, left, n, deal):
    """The n kept values of each of LANES groups, (ROWS, LANES) f32; `left` are still there."""
    beside = ref[:, n * start : n * (start + LANES)]
    inside = lax.broadcasted_iota(jnp.int32, beside.shape, 1) < n * left  # past it may lie NaN
    return _dealt(jnp.where(inside, beside, jnp.zeros_like(beside)), deal, n)


def _coded(refs, codes_ref, start, left, n, deal, *, values, length):
    """The same of codes, with a scale for each `length` groups."""
    fields, numbers = refs
    beside = []
    for at in range(n * start, n * (start + LANES), LANES):
        _unpack(codes_ref, fields, values["shifts"], slice(at, at + LANES))
        beside.append(codes_ref[...].astype(jnp.float32))
    kept = _dealt(jnp.concatenate(beside, 1), deal, n)
    scales = from_half_bits(numbers["scale"][...].astype(jnp.int32))
    of = lax.broadcasted_iota(jnp.int32, (len(scales), LANES), 1) + start
    of = lax.div(of, jnp.int32(length))  # `//` asks which TPU this is
    own = of == lax.broadcasted_iota(jnp.int32, of.shape, 0)
    scale = _chosen(scales, own, 0)
    scale = jnp.where(lax.broadcasted_iota(jnp.int32, scale.shape, 1) < left, scale, 0.0)
    zero = 0.0
    if "zero" in numbers:
        zero = _chosen(numbers["zero"][...].astype(jnp.float32), own, 0)
    return [(values["values"](v.astype(jnp.int32)) - zero) * scale for v in kept]


def _dealing(n: int) -> Array:
    """Where value i of group g goes from n · g + i to i · LANES + g: (n · LANES, n · LANES)."""
    size = (n * LANES, n * LANES)
    at, to = (lax.broadcasted_iota(jnp.int32, size, axis) for axis in (0, 1))
    lanes = jnp.int32(LANES)
    return at == lax.rem(to, lanes) * n + lax.div(to, lanes)


def _dealt(beside: Array, deal: Array, n: int) -> list[Array]:
    kept = _chosen(beside, deal)
    return [kept[:, i * LANES : (i + 1) * LANES] for i in range(n)]


def _chosen(a: Array, where: Array, axis: int = 1) -> Array:
    """a · where, a matrix of one True a column: numbers of `a` as they are, in f32."""
    half = a.dtype == jnp.bfloat16
    a = a if half else a.astype(jnp.float32)
    ones = where.astype(jnp.float32).astype(a.dtype)
    precision = None if half else lax.Precision.HIGHEST
    dims = (((axis,), (0,)), ((), ()))
    return lax.dot_general(a, ones, dims, precision, preferred_element_type=jnp.float32)
