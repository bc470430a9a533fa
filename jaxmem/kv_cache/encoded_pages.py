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

    Codes are (..., P · bits / 8, h), and ranges in f16 (..., 2h + 2P): `split_ranges` parts them.
    With `beside` the codes of values are beside those of keys.

    Error: |x − decoded x| ≤ range/(2^bits − 1)/2 + 2^-10 · (|low| + range), the second for f16.

    Example:
        >>> x = jnp.linspace(-1, 1, 64).reshape(8, 8)
        >>> page = encode_pages(x, x, 4, beside=True)
        >>> page.keys.shape, page.ranges.shape
        ((4, 16), (32,))
    """
    keys, *of_keys = rounded(keys, bits, -2)
    values, *of_values = rounded(values, bits, -1)
    ranges = [*(x[..., 0, :] for x in of_keys), *(x[..., 0] for x in of_values)]
    if beside:
        keys, values = jnp.concatenate([keys, values], -1), None
    pack = lambda codes: None if codes is None else packed_codes(codes, bits, -2)
    return PageStore(pack(keys), pack(values), jnp.concatenate(ranges, -1))


def split_ranges(page: PageStore) -> tuple[Array, Array, Array, Array]:
    """Step and low of the keys (..., h), step and low of the values (..., P), in f32.

    Example:
        >>> x = jnp.arange(64.0).reshape(8, 8)
        >>> page = encode_pages(x, x, 8, beside=True)
        >>> [float(part[0]) for part in split_ranges(page)]  # 0 to 56, and 0 to 7
        [0.2196044921875, 0.0, 0.0274505615234375, 0.0]
    """
    width = page.keys.shape[-1] // (2 if page.values is None else 1)
    size = page.ranges.shape[-1] // 2 - width
    ranges = page.ranges.astype(jnp.float32)
    return tuple(jnp.split(ranges, (width, 2 * width, 2 * width + size), -1))


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
    keys, values = keys.astype(jnp.float32), values.astype(jnp.float32)
    key_step, key_low, value_step, value_low = split_ranges(page)
    keys = keys * key_step[..., None, :] + key_low[..., None, :]
    return keys, values * value_step[..., None] + value_low[..., None]


def unpacked_codes(packed: Array, bits: int) -> Array:
    """Codes (..., P, h), one a byte, of bytes that hold tokens which are far apart.

    Example:
        >>> unpacked_codes(jnp.array([[49], [66]], jnp.uint8), 4).tolist()
        [[1], [2], [3], [4]]
    """
    parts = [packed >> i & (2**bits - 1) for i in range(0, 8, bits)]
    return jnp.concatenate(parts, axis=-2)
