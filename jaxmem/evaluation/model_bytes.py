"""space_of: the bytes of a model: its file, its weights in memory, its cache for each token."""

from typing import Any

import jax
import jax.numpy as jnp

from ..core.byte_counts import nbytes
from ..core.leaf import decode, is_encoded
from ..core.paths import leaf_paths
from ..core.usage import uses
from ..models.model import Model
from ..models.text_models import context
from .origin import source_files

_MOST_TOKENS = 1024


def space_of(model: Model, *, with_file: bool = True) -> dict[str, int]:
    """{what: bytes}: `resident` weights, and where they are known `file` and `cache_per_token`.

    The file is that which the model was loaded from. The cache of a token is the mean over the
    model's context, or over 1,024 tokens if it is longer; a state that does not grow counts too.
    `read_per_token` are the weights that the next token of a text reads.

    Example:
        >>> import jaxmem as jm
        >>> space = space_of(jm.models.load("llama-8b"))
        >>> space["cache_per_token"]  # 2 * 32 layers * 8 * 128 * 2
        131072
        >>> space["resident"] - space["read_per_token"]  # but one row of the embedding: 2 * 4,096
        1050664960
    """
    found = {"resident": nbytes(model.params)}
    if with_file and (files := source_files(model.source)):
        found["file"] = sum(path.stat().st_size for path in files)
    if per_token := cache_per_token(model):
        found["cache_per_token"] = per_token
        found["read_per_token"] = read_per_token(model)
    return found


def read_per_token(model: Model) -> int:
    """Bytes of the weights that one token of one text reads: a proxy of its energy.

    Moving a byte from memory costs far more energy than computing with it (Horowitz, 2014). Of a
    table that is only looked up one row counts, of experts as many as a token has.
    """
    dense = jax.eval_shape(decode, model.params)
    found = uses(model.apply, dense, jax.ShapeDtypeStruct((1, 1), jnp.int32))
    mixture, total = getattr(model.config, "mixture", None), 0.0
    leaves = jax.tree.leaves(model.params, is_leaf=is_encoded)
    for path, leaf in zip(leaf_paths(model.params), leaves):
        if mixture and "/experts/" in path:
            total += nbytes(leaf) * mixture.per_token / mixture.experts
        elif {use.op for use in found.get(path, ())} == {"gather"}:
            total += nbytes(leaf) / leaf.shape[0]
        else:
            total += nbytes(leaf)
    return round(total)


def cache_per_token(model: Model) -> int | None:
    """Bytes of keys and values of one token of one text; None for a model without a cache."""
    make: Any = getattr(model.config, "cache", None)
    if make is None:
        return None
    dtype = jax.tree.leaves(model.tensors, is_leaf=is_encoded)[0].dtype
    tokens = min(context(model), _MOST_TOKENS)
    return nbytes(jax.eval_shape(lambda: make(1, tokens, dtype))) // tokens
