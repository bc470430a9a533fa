"""Where tokens are: rotary positions, their frequencies in each layer, and the slopes of ALiBi."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from ...kv_cache.attention_masks import NO_LIMIT
from ...kv_cache.packed_texts import Packed, token_positions
from ..configs.decoder_config import Config


def per_layer(config: Config, length: Any = 0) -> dict[str, np.ndarray]:
    """The values that differ between layers, stacked for the scan.

    "index" and "window" are (layers,) int32; "index" counts the layers with attention, and "state"
    those with a recurrence. "frequencies" are (layers, rotated channels / 2) f32,
    in radians for each position, and 0 in a layer without rotary positions. "magnitude" (layers,)
    f32 is there where `rope_magnitude` is not 1, and "rotated" (layers,) bool where a layer's
    rotary positions change more than the rotation.

    `length` is the number of tokens that the text may reach: dynamic NTK and LongRoPE have other
    frequencies for a longer text, and all of a text has the same ones.
    """
    c = config
    local = np.asarray(c.local or (False,) * c.layers)
    unrotated = np.asarray(c.no_rope or (False,) * c.layers)
    values = {
        "index": np.arange(c.layers, dtype=np.int32),
        "window": np.where(local, c.window, NO_LIMIT).astype(np.int32),
    }
    if c.recurrence is not None and not c.recurrence.beside:
        recurrent = np.asarray(c.recurrence.layers or (True,) * c.layers)
        values |= {"index": _places(~recurrent), "state": _places(recurrent)}
    elif c.recurrence is not None:
        values["state"] = values["index"]
    if c.positions != "rotary":
        return values
    width = c.rotary_dim or c.head_dim
    separate = local & (not c.local_scaled)
    local_frequencies = rope_frequencies(width, c.local_theta)
    frequencies = np.where(
        separate[:, None], local_frequencies[None], _of_length(c, width, length)[None]
    )
    values["frequencies"] = np.where(unrotated[:, None], 0, frequencies).astype(np.float32)
    if c.rope_magnitude != 1:
        plain = separate | unrotated
        values["magnitude"] = np.where(plain, 1.0, c.rope_magnitude).astype(np.float32)
    if c.qk_norm_over == "rotated" or c.growth_unrotated:
        values["rotated"] = ~unrotated
    return values


def rotate_positions(
    x: Array, config: Config, layer: dict, position: Array | int | Packed
) -> Array:
    """Queries or keys x (B, heads, T, h) with rotary positions; `layer` is a slice of `per_layer`.

    Only the first `rotary_dim` channels of a head are rotated.
    """
    c = config
    if not (c.rotary_dim or c.interleaved or "magnitude" in layer):
        return rope(x, layer["frequencies"], position)
    width = c.rotary_dim or c.head_dim
    turned, rest = x[..., :width], x[..., width:]
    turned = rope(turned, layer["frequencies"], position, c.interleaved)
    if "magnitude" in layer:
        turned = (turned.astype(jnp.float32) * layer["magnitude"]).astype(x.dtype)
    return jnp.concatenate([turned, rest], axis=-1) if rest.shape[-1] else turned


def grow_queries(q: Array, config: Config, layer: dict, position: Array | int | Packed) -> Array:
    """Queries q (B, heads, T, h) times 1 + growth * log(1 + position // original_context).

    With `growth_unrotated` positions count from 1, and queries of rotated layers stay.
    """
    steps = token_positions(position, q.shape[2])
    steps = steps + 1 if config.growth_unrotated else steps
    lengths = (steps // config.original_context).astype(jnp.float32)
    factor = 1 + config.query_growth * jnp.log1p(lengths)
    if config.growth_unrotated:
        factor = jnp.where(layer["rotated"], 1.0, factor)
    return (q.astype(jnp.float32) * factor[:, None, :, None]).astype(q.dtype)


def alibi_slopes(heads: int, most: float = 8.0) -> np.ndarray:
    """What ALiBi takes from a score for each token of distance: (heads,) f32 (Press et al., 2022).

    The slopes of 2^n heads are 2^(-8/2^n), 2^(-16/2^n), ... Further heads have the odd terms of
    the series for twice as many heads. `most` is in place of 8, the largest exponent.

    Example:
        >>> from jaxmem.architectures.attention.positions import alibi_slopes
        >>> alibi_slopes(3).tolist()
        [0.0625, 0.00390625, 0.25]
    """
    whole = 2 ** int(math.log2(heads))
    exponents = most / whole * np.arange(1, whole + 1)
    between = most / 2 / whole * np.arange(1, 2 * (heads - whole), 2)
    return (2.0 ** -np.concatenate([exponents, between])).astype(np.float32)


def rope(
    x: Array, frequencies: Array, position: Array | int | Packed, interleaved: bool = False
) -> Array:
    """Rotary positions (Su et al., 2021): rotates pairs in each head of x (B, heads, T, h).

    Channel i and channel i + h / 2 are a pair, or with `interleaved` channels 2i and 2i + 1. Its
    angle is position * frequencies[i], in radians; `position` is that of the first of the T tokens,
    or where the tokens of several texts are, and `frequencies` is (h / 2,).
    """
    steps = token_positions(position, x.shape[2])
    angle = steps.astype(jnp.float32)[:, None, :, None] * frequencies[None, None, None, :]
    if interleaved:
        return _rope_interleaved(x, angle)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def check_positions(ids: Array, position: Array | int, rows: int) -> None:
    """Refuses tokens that a table of `rows` positions does not reach, when a program is traced.

    A look-up past the table would read its last row. A `position` that is traced counts as 0.

    Raises:
        ValueError: there are more tokens than positions.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmem.architectures.attention.positions import check_positions
        >>> check_positions(jnp.zeros((1, 8), int), 10, rows=16)
        Traceback (most recent call last):
        ValueError: 8 tokens from position 10, in a model of 16 positions; use fewer tokens
    """
    length, start = ids.shape[1], position if isinstance(position, int) else 0
    if isinstance(length, int) and start + length > rows:
        raise ValueError(
            f"{length} tokens from position {start}, in a model of {rows} positions; "
            "use fewer tokens"
        )


def _rope_interleaved(x: Array, angle: Array) -> Array:
    """Rotates channels 2i and 2i + 1 of x by angle[..., i].

    The channels stay on the last axis, since an axis of 2 would fill 2 of a TPU's 128 lanes.
    """
    angle = jnp.repeat(angle, 2, axis=-1)
    y = x.astype(jnp.float32)
    is_first = (jnp.arange(x.shape[-1], dtype=jnp.int32) % 2 == 0)[None, None, None, :]
    partner = jnp.where(is_first, -jnp.roll(y, -1, -1), jnp.roll(y, 1, -1))
    return (y * jnp.cos(angle) + partner * jnp.sin(angle)).astype(x.dtype)


def _places(chosen: np.ndarray) -> np.ndarray:
    """The place of each chosen layer among the chosen ones."""
    return np.maximum(np.cumsum(chosen) - 1, 0).astype(np.int32)


def _of_length(c: Config, width: int, length: Any) -> np.ndarray:
    """The frequencies (width / 2,) of layers that are not local, in a text of `length` tokens."""
    if (c.rope_dynamic or c.rope_long_factors) and not isinstance(length, int):
        raise ValueError(
            "a text of unknown length has no rotary frequencies: this model's depend on it; "
            "give ids or a cache of a fixed length"
        )
    theta, factors = c.theta, c.rope_factors
    if c.rope_dynamic and length > c.original_context:
        growth = c.rope_dynamic * length / c.original_context - (c.rope_dynamic - 1)
        theta *= growth ** (width / (width - 2))
    if c.rope_long_factors and length > c.original_context:
        factors = c.rope_long_factors
    frequencies = rope_frequencies(width, theta, c.rope_scaling)
    return frequencies / np.asarray(factors, np.float32) if factors else frequencies


def rope_frequencies(width: int, theta: float, scaling: tuple[float, ...] = ()) -> np.ndarray:
    """Rotary frequencies (width / 2,) in radians for each position.

    With `scaling`, a wavelength above original / low is divided in frequency by `factor`, one below
    original / high is unchanged, and those between are interpolated.
    """
    factor, low, high, original = (*scaling, *(1.0, 1.0, 2.0, 0.0)[len(scaling) :])
    f = (1.0 / theta ** (np.arange(0, width, 2, dtype=np.float32) / width)).astype(np.float32)
    keep = np.clip((original * f / (2 * math.pi) - low) / (high - low), 0.0, 1.0)
    return f * (keep + (1.0 - keep) / factor)
