"""space_of: the bytes of a model: its file, its weights in memory, its cache for each token."""

from typing import Any

import jax

from ..core.byte_counts import nbytes
from ..core.leaf import is_encoded
from ..models.model import Model
from ..models.text_models import context
from .origin import source_files

_MOST_TOKENS = 1024


def space_of(model: Model, *, with_file: bool = True) -> dict[str, int]:
    """{what: bytes}: `resident` weights, and where they are known `file` and `cache_per_token`.

    The file is that which the model was loaded from. The cache of a token is the mean over the
    model's context, or over 1,024 tokens if it is longer; a state that does not grow counts too.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> space_of(jm.models.load("llama-8b"))["cache_per_token"]  # 2 * 32 layers * 8 * 128 * 2
        131072
    """
    found = {"resident": nbytes(model.params)}
    if with_file and (files := source_files(model.source)):
        found["file"] = sum(path.stat().st_size for path in files)
    if per_token := cache_per_token(model):
        found["cache_per_token"] = per_token
    return found


def cache_per_token(model: Model) -> int | None:
    """Bytes of keys and values of one token of one text; None for a model without a cache."""
    make: Any = getattr(model.config, "cache", None)
    if make is None:
        return None
    dtype = jax.tree.leaves(model.tensors, is_leaf=is_encoded)[0].dtype
    tokens = min(context(model), _MOST_TOKENS)
    return nbytes(jax.eval_shape(lambda: make(1, tokens, dtype))) // tokens
