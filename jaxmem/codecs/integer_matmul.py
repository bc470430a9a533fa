"""Products of `IntArray`: what is fast on a CPU, on an accelerator, and when differentiated."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..kernels.packed_matmul import packed_product
from ..kernels.tiled_matmul import UNROLLED_TILES, cpu_product, decoded_product, map_tiles
from .packing import centred, interleave, shifts, slices
from .scale_rounding import divisor

FEW_ROWS = 32  # up to here a CPU's integer product beats decoding, if a row has one scale
FEW_SUMS = 2**21  # f32 sums that a TPU interleaves on the chip; more of them would be copied
WHOLE = 2**20  # weights that are too few for tiles
CACHED = 2**18  # weights of a tile of int8, in a core's cache: experiments/speed/cpu_matvec.py
RUN = 2**22  # weights that one integer product of a CPU reads
_LAST = (((1,), (1,)), ((), ()))  # both operands summed over their last axis


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _matmul(x, leaf, precision):
    """x (m, k) . rows^T: (m, n) f32, by what is fast where it runs."""
    (m, k), (groups, n) = x.shape, leaf.scale.shape[-2:]
    wide = functools.partial(cpu_product, precision=precision)
    on_cpu = _by_digits if groups == 1 and m <= FEW_ROWS and k else wide
    after = functools.partial(_scaled_after, precision=precision)
    if groups == 1 and (leaf.bits == 8 or m == 1):
        elsewhere = after
    else:  # a byte of several codes is read once, not once for each of its parts
        tiles = functools.partial(decoded_product, precision=precision, unrolled=UNROLLED_TILES)
        otherwise = after if groups == 1 and m * n <= FEW_SUMS else tiles
        elsewhere = functools.partial(packed_product, otherwise=otherwise, precision=precision)
    return lax.platform_dependent(x, leaf, cpu=on_cpu, default=elsewhere)


@_matmul.defjvp
def _matmul_jvp(precision, primals, tangents):
    decoded = functools.partial(decoded_product, precision=precision)
    return _matmul(*primals, precision), jax.jvp(decoded, primals, tangents)[1]


matmul = jax.jit(_matmul, static_argnums=2)  # layers of one shape trace and lower it once


def _centred(leaf):
    """(weight, parts) of each field: codes less the middle when symmetric, so they need no zero."""
    for field, (width, shift) in zip(leaf.codes, shifts(leaf.bits)):
        parts = slices(field, width)
        if leaf.zero is None and width + shift == leaf.bits < 8:
            parts = [part - (1 << width - 1) for part in parts]
        yield 1 << shift, parts


def _codes_product(x, leaf, dot):
    """x . codes^T (m, n), a dot for each interleaved part of each field."""
    n = leaf.scale.shape[-1]
    return sum(
        interleave([dot(x, part) for part in parts], -1)[:, :n] * weight
        for weight, parts in _centred(leaf)
    )


def _scaled_after(x, leaf, precision):
    """(x . codes) · scale: the accelerator reads packed codes and nothing is materialised."""

    def dot(x, w):
        w = w.astype(x.dtype)
        return lax.dot_general(x, w, _LAST, precision, preferred_element_type=jnp.float32)

    y = _codes_product(x, leaf, dot)
    if leaf.zero is not None:
        y -= dot(x, jnp.ones((1, x.shape[1]), x.dtype)) * leaf.zeros().astype(jnp.float32)
    return y * leaf.scale.astype(jnp.float32)


def _by_digits(x, leaf):
    """int8 x int8 products of three base-254 digits of x: f32's accuracy at int8's speed."""
    return by_integers(_digits(x.astype(jnp.float32), 3), leaf)


def by_integers(terms: list[tuple[Array, Array]], leaf: Any) -> Array:
    """Σ factor · digits . rows^T, (m, n) f32, as a CPU does it: in int8 × int8 products.

    The leaf is an `IntArray` of one group. A term is int8 digits (m or 1, k) and an f32 factor
    (m, 1). The products read the codes as they are; f32 would have to unpack them first.
    """
    digits = jnp.concatenate([digits for digits, _ in terms])
    args = digits, [(len(digits), factor) for digits, factor in terms]
    product = lambda args, part: _terms_product(*args, part)
    n, k = leaf.fold.n, leaf.fold.k
    if leaf.bits == 8 or n * k <= WHOLE:
        return product(args, leaf)
    return map_tiles(product, args, leaf, tile_rows=max(32, CACHED // k), fetch=True)


def _terms_product(digits, terms, leaf):
    """Σ factor · digits . rows^T of terms (count of digits, factor): (m, rows of leaf) f32."""
    n, unit = leaf.scale.shape[-1], 2.0 ** (leaf.bits - 8)
    parts, ys = centred(leaf.codes, leaf.bits, n, axis=-2), []
    zeros = None if leaf.zero is None else centred(leaf.zero, leaf.bits, n, axis=-1)
    sums = digits.astype(jnp.int32).sum(-1)[None]
    for j, codes in enumerate(parts):
        found = _products(codes, digits)
        if zeros is not None:
            found -= zeros[j][0, :, None].astype(jnp.int32) * sums
        found, y = found.astype(jnp.float32), 0.0
        for count, factor in terms:
            y += found[:, :count] * factor.T
            found = found[:, count:]
        ys.append(y * (leaf.scales()[0, j :: len(parts), None] * unit))
    return interleave(ys, -2).T


def _products(w, digits):
    """w (n, k) . digits (r, k) of int8: (n, r) int32.

    w on the left is read as it lies, a run of its rows a time; on the right XLA would pack it first
    (jax 0.10.2 and 0.12: 1.4 to 2 times as long).
    """
    (n, k), r = w.shape, len(digits)
    runs = next((i for i in range(max(1, -(-n * k // RUN)), n // 32 + 1) if n % i == 0), 1)
    w, digits = w.reshape(runs, -1, k), jnp.broadcast_to(digits, (runs, r, k))
    dims = (((2,), (2,)), ((0,), (0,)))
    return lax.dot_general(w, digits, dims, preferred_element_type=jnp.int32).reshape(n, r)


def _digits(x, count):
    """[(digit (m, k) in [-127, 127], step (m, 1))]: x is about the sum of digit · step."""
    step = divisor(jnp.abs(x).max(-1, keepdims=True, initial=0.0) / 127)
    terms = []
    for _ in range(count):
        digit = jnp.round(x / step)
        x = x - digit * step
        terms.append((digit.astype(jnp.int8), step))
        step = step / 254  # what is left is at most half a step
    return terms
