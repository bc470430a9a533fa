"""BERT, an encoder by encoder.py, and the mean of an encoder's hidden states as a text's vector."""

import jax.numpy as jnp
from jax import Array

from .encoder import Block as Block
from .encoder import Config as Config
from .encoder import Encoder as Encoder
from .encoder import module as module
from .encoder import weights as weights
from .layers.encoder_head import mean_of_tokens


def embed(hidden: Array, mask: Array) -> Array:
    """One unit vector for each sentence: its tokens' mean hidden vector (Reimers, 2019).

    `hidden` is (B, T, d), `mask` (B, T) is true at real tokens, and the result is (B, d) in f32.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmem.architectures import bert
        >>> hidden = jnp.asarray([[[3.0, 4.0], [9.0, 9.0]]])
        >>> bert.embed(hidden, jnp.asarray([[True, False]]))
        Array([[0.6, 0.8]], dtype=float32)
    """
    mean = mean_of_tokens(hidden, mask)
    return mean / jnp.maximum(jnp.linalg.norm(mean, axis=-1, keepdims=True), 1e-12)
