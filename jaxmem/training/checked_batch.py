"""checked_batch: what an iterator gives, in the form that the step of a recipe takes."""

from typing import Any

import jax
import numpy as np

from ..models.model import check_in_vocabulary
from ..planner.recipe import Recipe
from ..planner.training_batch import fields


def checked_batch(batch: Any, recipe: Recipe, config: Any) -> Any:
    """Ids (batch, seq) int32, or with `recipe.packed` a dict of the fields that `config` takes.

    One of n processes may have batch / n rows.

    Raises:
        ValueError: a shape or a dtype is another one, an id is outside the vocabulary, or a recipe
            that is not packed would lose what the batch says of its rows; or nothing of the batch
            is to be predicted.

    Example:
        >>> from jaxmem.architectures import llama
        >>> recipe = Recipe("tiny", "cpu", "train", 1, 4)
        >>> config = llama.Config(8, width=8, ffn=8, layers=1, heads=1, kv_heads=1, head_dim=8)
        >>> checked_batch(np.arange(4)[None], recipe, config)
        array([[0, 1, 2, 3]], dtype=int32)
    """
    if not recipe.packed:
        ids = _whole_texts(batch) if isinstance(batch, dict) else batch
        return _ids(ids, recipe, config.vocab)
    names = fields(config)
    if not isinstance(batch, dict) or not set(names) <= set(batch):
        cure = "; see jm.data.MaskedBatches" if "targets" in names else ""
        raise ValueError(f"a packed recipe takes batches with {', '.join(names)}{cure}")
    arrays = {name: np.asarray(batch[name]) for name in names}
    for name, x in arrays.items():
        if x.shape not in _shapes(recipe) or x.dtype.kind not in "biu":
            raise ValueError(
                f"{name} of a batch is {x.dtype} {x.shape}, expected integers or booleans "
                f"{(recipe.batch, recipe.seq)}"
            )
    predicted = arrays["mask"] if "targets" in names else arrays["mask"][:, 1:]
    is_whole = len(predicted) == recipe.batch  # other processes may have what is predicted
    if is_whole and not predicted.any():
        raise ValueError("the mask of a batch hides all tokens, expected one to be predicted")
    typed = {name: x.astype(names[name]) for name, x in arrays.items()}
    if "targets" in typed:
        check_in_vocabulary(typed["targets"], config.vocab, "targets")
    return typed | {"ids": _ids(arrays["ids"], recipe, config.vocab)}


def placed(x: np.ndarray, like: jax.ShapeDtypeStruct) -> jax.Array:
    """An array of a batch on the devices of `like`, also from the rows that this process has."""
    if x.shape == like.shape and jax.process_count() == 1:
        return jax.device_put(x, like.sharding)
    if x.shape == like.shape:
        return jax.make_array_from_callback(x.shape, like.sharding, lambda where: x[where])
    return jax.make_array_from_process_local_data(like.sharding, x, like.shape)


def _shapes(recipe: Recipe) -> list[tuple[int, int]]:
    """The shapes of the ids that this process may have."""
    return [(recipe.batch, recipe.seq), (recipe.batch // jax.process_count(), recipe.seq)]


def _ids(ids: Any, recipe: Recipe, vocab: int) -> np.ndarray:
    ids = np.asarray(ids)
    if ids.shape not in _shapes(recipe) or not np.issubdtype(ids.dtype, np.integer):
        shape = recipe.batch, recipe.seq
        raise ValueError(f"a batch is {ids.dtype} {ids.shape}, expected integers {shape}")
    check_in_vocabulary(ids, vocab)
    return ids.astype(np.int32)


def _whole_texts(batch: dict) -> Any:
    """The ids of rows that are one text each, all of it learnt."""
    if missing := sorted({"ids", "segments", "mask"} - set(batch)):
        raise ValueError(f"a batch has no {', '.join(missing)}, as those of jm.data.Batches do")
    one = np.asarray(batch["segments"]) == 1
    if not (one.all() and np.asarray(batch["mask"])[:, 1:].all()):
        raise ValueError(
            "rows hold several texts, padding, or what is not learnt: give a recipe with "
            "packed=True"
        )
    return batch["ids"]
