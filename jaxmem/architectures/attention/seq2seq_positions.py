"""Where the tokens of an encoder-decoder are: rows of a table, or sinusoids."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from .encoder_positions import table_rows
from .positions import check_positions


def position_rows(ids: Array, config: Any, position: Array | int) -> Array:
    """The position (1 or B, T) of each of `ids` (B, T), of which the first is at `position`.

    With `config.pad` padding has position `pad`, and other tokens count from `pad` + 1.

    Raises:
        ValueError: there are more tokens than positions.
    """
    c = config
    check_positions(ids, position, c.context)
    if c.pad is None:
        return table_rows(ids, None) + position + c.position_offset
    return jnp.where(ids == c.pad, c.pad, table_rows(ids, c.pad) + position)


def sinusoids(rows: Array, config: Any) -> Array:
    """Sines, then cosines, of positions (B, T) at falling frequencies: (B, T, width) f32.

    Frequency i of n = width / 2 is 10,000^(-i / n), in radians for each position, or with
    `ends_at_slowest` 10,000^(-i / (n - 1)) (Vaswani et al., 2017). Padding has zeros.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmem.architectures.seq2seq import Config
        >>> config = Config(vocab=8, width=4, ffn=8, layers=1, heads=1, positions="sinusoidal")
        >>> (100 * sinusoids(jnp.array([[0, 1]]), config)).astype(int).tolist()
        [[[0, 0, 100, 100], [84, 0, 54, 99]]]
    """
    count = config.width // 2
    exponents = np.arange(count) / (count - 1 if config.ends_at_slowest else count)
    frequencies = np.exp(-math.log(10_000) * exponents).astype(np.float32)
    angle = rows.astype(jnp.float32)[..., None] * frequencies[None, None]
    vectors = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
    return vectors if config.pad is None else jnp.where((rows == config.pad)[..., None], 0, vectors)
