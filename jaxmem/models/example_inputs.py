"""The inputs a model takes: example shapes to trace it with, and the windows its text is cut in."""

from typing import Any

import jax
import jax.numpy as jnp

from .flax_model import FlaxModel
from .model import Model
from .text_models import context

WINDOW_TOKENS = 1024


def example_inputs(model: Model, length: int = 8) -> tuple[Any, ...]:
    """Shapes of the arguments that `model.apply` takes after its params, a batch of one row.

    Token ids (1, length) int32; an encoder also takes a mask (1, length) of bools, one of images
    takes pixels, an encoder-decoder the ids of its decoder and a mask, and a module of
    `from_flax` its own inputs, if they were given.

    Example:
        >>> import jaxmem as jm
        >>> example_inputs(jm.models.load("llama-8b"))
        (ShapeDtypeStruct(shape=(1, 8), dtype=int32),)
    """
    if isinstance(model, FlaxModel) and model.config.inputs:
        return model.config.inputs
    if isinstance(model, FlaxModel) and model.config.context:
        length = min(length, model.config.context)
    if hasattr(model.config, "example_inputs"):
        return model.config.example_inputs(length)
    return (jax.ShapeDtypeStruct((1, length), jnp.int32),)


def window(model: Model) -> int:
    """Tokens in one window of a text: 1,024, or the length of the model's context if it is less.

    Example:
        >>> import jaxmem as jm
        >>> window(jm.models.load("llama-8b"))
        1024
    """
    return min(WINDOW_TOKENS, context(model))
