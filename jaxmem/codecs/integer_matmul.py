"""Products of `IntArray`: what is fast on a CPU, on an accelerator, and when differentiated."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..cpu_kernels.integer_rows import integer_rows_product
from ..kernels.decoded_tiles import UNROLLED_TILES, cpu_product, decoded_product, map_tiles
from ..kernels.dispatch import at_most, by_platform, differentiated_by, product_like
from ..kernels.pallas_packed_matmul import packed_product
from .float16_scales import divisor
from .packing import centred_parts, field_parts, interleave, shifts

# On a CPU:
DIGIT_ROWS = 32  # rows of x up to which integer products beat decoding, with one scale a row
UNTILED_WEIGHTS = 2**20  # weights up to which unpacked codes are not tiled
TILE_WEIGHTS = 2**18  # weights of an int8 tile that fits a cache: experiments/speed/cpu_matvec.py
PRODUCT_WEIGHTS = 2**22  # weights that one integer product reads
# On a TPU:
INTERLEAVED_SUMS = 2**21  # f32 sums up to which it interleaves on the chip; it would copy more
_LAST_AXES = (((1,), (1,)), ((), ()))  # both operands are summed over their last axis


@functools.partial(
    jax.jit, static_argnames="precision"
)  # layers of one shape are traced and lowered once
@differentiated_by(decoded_product, product_like)
def matmul(x: Array, leaf: Any, *, precision: Any) -> Array:
    """x (m, k) . rows^T of an unstacked `IntArray`: (m, n) f32, by what is fast on the platform.

    The leaf may be a `StackLayer` of a stack of them.
    """
    if leaf.in_stack()[1] is not None:
        return _matmul_in_stack(x, leaf, precision)
    (m, k), (groups, n) = x.shape, leaf.scale.shape[-2:]
    decoded = functools.partial(cpu_product, precision=precision)
    in_xla = _digit_product if groups == 1 and at_most(m, DIGIT_ROWS) and k else decoded
    on_cpu = functools.partial(integer_rows_product, otherwise=in_xla)
    scaled_after = functools.partial(_product_then_scale, precision=precision)
    if groups == 1 and (leaf.bits == 8 or m == 1):
        elsewhere = scaled_after
    else:  # the kernel reads a byte of several codes once, not once for each of its parts
        tiles = functools.partial(decoded_product, precision=precision, unrolled=UNROLLED_TILES)
        otherwise = scaled_after if groups == 1 and at_most(m * n, INTERLEAVED_SUMS) else tiles
        elsewhere = functools.partial(packed_product, otherwise=otherwise, precision=precision)
    return by_platform(x, leaf, cpu=on_cpu, default=elsewhere, like=product_like(x, leaf))


def _matmul_in_stack(x, leaf, precision):
    """`matmul` of a `StackLayer`, which is read where it lies on a CPU and on one TPU."""
    stack, _ = leaf.in_stack()
    sliced = lambda x, leaf: matmul(x, leaf.unwrapped(), precision=precision)
    as_stored = lambda x, leaf: matmul(x, leaf.slice_of_stack(), precision=precision)
    on_cpu = functools.partial(integer_rows_product, otherwise=sliced)
    elsewhere = as_stored if stack.read_as_stored else sliced
    if stack.scale.shape[-2] > 1:
        elsewhere = functools.partial(packed_product, otherwise=sliced, precision=precision)
    return by_platform(x, leaf, cpu=on_cpu, default=elsewhere, like=product_like(x, leaf))


def _weighted_parts(leaf):
    """(weight, parts) of each field: the codes are the sum of weight · part over the fields.

    Codes of a symmetric leaf are less the middle of their range, so that they need no zero.
    """
    for field, (width, shift) in zip(leaf.codes, shifts(leaf.bits)):
        parts = field_parts(field, width)
        if leaf.zero is None and width + shift == leaf.bits < 8:
            parts = [part - (1 << width - 1) for part in parts]
        yield 1 << shift, parts


def _codes_product(x, leaf, dot):
    """x . codes^T (m, n), by one `dot(x, part)` for each interleaved part of each field."""
    n = leaf.scale.shape[-1]
    return sum(
        interleave([dot(x, part) for part in parts], -1)[:, :n] * weight
        for weight, parts in _weighted_parts(leaf)
    )


def _product_then_scale(x, leaf, precision):
    """(x . codes) · scale: an accelerator reads packed codes, and no decoded weight is written."""

    def dot(x, w):
        w = w.astype(x.dtype)
        return lax.dot_general(x, w, _LAST_AXES, precision, preferred_element_type=jnp.float32)

    y = _codes_product(x, leaf, dot)
    if leaf.zero is not None:
        y -= dot(x, jnp.ones((1, x.shape[1]), x.dtype)) * leaf.zeros().astype(jnp.float32)
    return y * leaf.scale.astype(jnp.float32)


def _digit_product(x, leaf):
    """x . rows^T (m, n) f32 in int8 × int8 products of three base-254 digits of x.

    The accuracy is that of f32, the speed that of int8.
    """
    return integer_product(_digits(x.astype(jnp.float32), 3), leaf)


def integer_product(terms: list[tuple[Array, Array]], leaf: Any) -> Array:
    """Σ factor · digits . rows^T, (m, n) f32, in int8 × int8 products on a CPU.

    The leaf is an unstacked `IntArray` of one group. A term is int8 digits (m or 1, k) and an f32
    factor (m, 1). The products read the stored codes; f32 products would convert them first.
    """
    digits = jnp.concatenate([digits for digits, _ in terms])
    args = digits, [(len(digits), factor) for digits, factor in terms]
    product = lambda args, part: _terms_product(*args, part)
    n, k = leaf.fold.n, leaf.fold.k
    if leaf.bits == 8 or n * k <= UNTILED_WEIGHTS:
        return product(args, leaf)
    return map_tiles(product, args, leaf, tile_rows=max(32, TILE_WEIGHTS // k), fetch=True)


def _terms_product(digits, terms, leaf):
    """Σ factor · digits . rows^T, (m, rows of the leaf) f32, of a leaf or a tile of its rows.

    `digits` are the rows of all terms, int8; `terms` has (rows of the term, factor) of each.
    """
    n, unit = leaf.scale.shape[-1], 2.0 ** (leaf.bits - 8)
    parts, ys = centred_parts(leaf.codes, leaf.bits, n, axis=-2), []
    zeros = None if leaf.zero is None else centred_parts(leaf.zero, leaf.bits, n, axis=-1)
    sums = digits.astype(jnp.int32).sum(-1)[None]
    for j, codes in enumerate(parts):
        products = _int8_product(codes, digits)  # (rows of the part, rows of all terms)
        if zeros is not None:
            products -= zeros[j][0, :, None].astype(jnp.int32) * sums
        products, y = products.astype(jnp.float32), 0.0
        for count, factor in terms:
            y += products[:, :count] * factor.T
            products = products[:, count:]
        ys.append(y * (leaf.scales()[0, j :: len(parts), None] * unit))
    return interleave(ys, -2).T


def _int8_product(w, digits):
    """w (n, k) . digits (r, k) of int8: (n, r) int32.

    The weight is the left operand, some of its rows at a time: XLA reads it as it is stored. A
    weight on the right would be packed first (jax 0.10.2 and 0.12: 1.4 to 2 times as long).
    """
    (n, k), r = w.shape, len(digits)
    fewest = max(1, -(-n * k // PRODUCT_WEIGHTS))
    runs = next((i for i in range(fewest, n // 32 + 1) if n % i == 0), 1)
    w, digits = w.reshape(runs, -1, k), jnp.broadcast_to(digits, (runs, r, k))
    dims = (((2,), (2,)), ((0,), (0,)))
    return lax.dot_general(w, digits, dims, preferred_element_type=jnp.int32).reshape(n, r)


def _digits(x, count):
    """`count` terms (digit (m, k) int8 in [-127, 127], step (m, 1)) with x ≈ Σ digit · step."""
    step = divisor(jnp.abs(x).max(-1, keepdims=True, initial=0.0) / 127)
    terms = []
    for _ in range(count):
        digit = jnp.round(x / step)
        x = x - digit * step
        terms.append((digit.astype(jnp.int8), step))
        step = step / 254  # the remainder is at most half a step
    return terms
