"""What a model that predicts text says of its tokens; others are refused."""

import jax
import jax.numpy as jnp
from flax.errors import FlaxError

from ..core.paths import is_whole
from .flax_model import FlaxModel
from .model import Model

_TRACED_TOKENS = 8


def context(model: Model) -> int:
    """The most tokens that a model takes at once.

    Raises:
        ValueError: a user's module came without it.
    """
    if model.config.context is None:
        raise ValueError(
            f"{model.source} does not say how many tokens it takes: give from_flax(..., context=n)"
        )
    return model.config.context


def reads_source(model: Model) -> bool:
    """Whether a model writes a text of its own about the one it is given: an encoder-decoder."""
    return model.config.family == "seq2seq"


def vocabulary(model: Model) -> int:
    """The number of tokens that a model's logits are of.

    Raises:
        ValueError: the model predicts no text: it is an encoder, or a user's module that does not
            map ids (batch, tokens) to logits (batch, tokens, vocabulary).

    Example:
        >>> import jaxmem as jm
        >>> vocabulary(jm.models.load("llama-8b"))
        128256
    """
    if not hasattr(model.config, "cache"):
        raise ValueError(f"{model.source} is an encoder: it predicts no text")
    if not isinstance(model, FlaxModel):
        return model.config.vocab
    ids = jax.ShapeDtypeStruct((1, min(_TRACED_TOKENS, context(model))), jnp.int32)
    shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
    tensors = jax.tree.map(shape, model.tensors, is_leaf=is_whole)
    wanted = f"expected logits (1, {ids.shape[1]}, vocabulary) of ids {ids.shape}"
    try:
        logits = jax.eval_shape(model.apply, tensors, ids)
    except (TypeError, ValueError, FlaxError) as error:
        raise ValueError(f"{model.source} predicts no text, {wanted}: {error}") from error
    is_array = isinstance(logits, jax.ShapeDtypeStruct)
    floats = is_array and jnp.issubdtype(logits.dtype, jnp.floating)
    if not floats or len(logits.shape) != 3 or logits.shape[:2] != ids.shape:
        got = f"{logits.dtype} {logits.shape}" if is_array else type(logits).__name__
        raise ValueError(f"{model.source} predicts no text: it gives {got}, {wanted}")
    return logits.shape[2]
