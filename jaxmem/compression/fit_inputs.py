"""What `fit` reads: dense weights, their shapes, and the token ids of a text."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.leaf import is_encoded
from ..core.paths import is_whole
from ..models.example_inputs import window
from ..models.model import Model, check_in_vocabulary
from ..models.text_models import vocabulary


def abstract(params: Any, dtype: Any = jnp.float32) -> Any:
    """The shapes of the dense tree that `params` stand for, all in `dtype`."""
    shape = lambda x: jax.ShapeDtypeStruct(x.shape, dtype)
    return jax.tree.map(shape, params, is_leaf=is_whole)


def check_dense(params: Any, source: str) -> None:
    """Refuses params that are shapes only, or encoded already.

    Raises:
        ValueError: a leaf is one of these.
    """
    for leaf in jax.tree.leaves(params, is_leaf=is_whole):
        if isinstance(leaf, jax.ShapeDtypeStruct) or is_encoded(leaf):
            raise ValueError(f"{source}: expected a model with dense weights")


def calibration_ids(model: Model, calibrate: Any, windows: int | None) -> np.ndarray:
    """The token ids (tokens,) of a text of at least one window, cut to so many windows."""
    vocab, ids = vocabulary(model), np.asarray(calibrate)
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(
            f"calibrate has shape {ids.shape} and dtype {ids.dtype}, expected token ids (tokens,)"
        )
    length = window(model)
    if len(ids) < length:
        raise ValueError(f"calibrate has {len(ids)} tokens, expected at least {length}")
    check_in_vocabulary(ids, vocab)
    return ids.astype(np.int32)[: None if windows is None else windows * length]
