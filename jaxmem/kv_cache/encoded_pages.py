"""x ≈ low + code · step in a page: a key's channel has one range, and each value vector its own.

A page is a group of KIVI (Liu et al., 2024): it is encoded once, when it is full. Scores and sums
are of codes: q · k = (q · step) · code + q · low, and Σ s v = Σ (s · step) code + Σ s · low. A byte
holds tokens that are a half (or a quarter) of a page apart.
"""

import jax.numpy as jnp
from jax import Array

from .page_pool import PageStore
from .quantized import packed_codes, rounded


def encode_pages(keys: Array, values: Array, bits: int, beside: bool) -> PageStore:
    """Pages of keys and values (..., P, h) in `bits` bits, as a `PageStore` holds them.

    Codes are (..., P · bits / 8, h); the ranges of keys (..., h) and of values (..., P), in f16.
    With `beside` the codes of values are beside those of keys.

    Error: |x − decoded x| ≤ range/(2^bits − 1)/2 + 2^-10 · (|low| + range), the second for f16.

    Example:
        >>> x = jnp.linspace(-1, 1, 64).reshape(8, 8)
        >>> page = encode_pages(x, x, 4, beside=True)
        >>> page.keys.shape, page.key_step.shape, page.value_step.shape
        ((4, 16), (8,), (8,))
    """
    keys, key_step, key_low = rounded(keys, bits, -2)
    values, value_step, value_low = rounded(values, bits, -1)
    if beside:
        keys, values = jnp.concatenate([keys, values], -1), None
    pack = lambda codes: None if codes is None else packed_codes(codes, bits, -2)
    return PageStore(
        keys=pack(keys),
        values=pack(values),
        key_step=key_step[..., 0, :],
        key_low=key_low[..., 0, :],
        value_step=value_step[..., 0],
        value_low=value_low[..., 0],
    )


def decode_pages(page: PageStore, bits: int) -> tuple[Array, Array]:
    """Keys and values (..., P, h) of pages, in f32.

    Example:
        >>> x = jnp.linspace(-1, 1, 64).reshape(8, 8)
        >>> keys, values = decode_pages(encode_pages(x, x, 8, beside=False), 8)
        >>> float(abs(keys - x).max()) < 2 / 255 and float(abs(values - x).max()) < 0.26 / 255
        True
    """
    keys = unpacked_codes(page.keys, bits)
    if page.values is None:
        keys, values = jnp.split(keys, 2, -1)
    else:
        values = unpacked_codes(page.values, bits)
    f32 = lambda x: x.astype(jnp.float32)
    keys = f32(keys) * f32(page.key_step)[..., None, :] + f32(page.key_low)[..., None, :]
    values = f32(values) * f32(page.value_step)[..., None] + f32(page.value_low)[..., None]
    return keys, values


def unpacked_codes(packed: Array, bits: int) -> Array:
    """Codes (..., P, h), one a byte, of bytes that hold tokens which are far apart.

    Example:
        >>> unpacked_codes(jnp.array([[49], [66]], jnp.uint8), 4).tolist()
        [[1], [2], [3], [4]]
    """
    parts = [packed >> i & (2**bits - 1) for i in range(0, 8, bits)]
    return jnp.concatenate(parts, axis=-2)
