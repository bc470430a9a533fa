"""The batch of a training step: ids (rows, tokens), or the packed rows of `jm.data.Batches`."""

from typing import Any

import jax.numpy as jnp
from jax import Array

from .model_limits import predicts_hidden_tokens
from .recipe import Recipe
from .step_layout import StepLayout

FIELDS = {"ids": jnp.int32, "segments": jnp.int32, "positions": jnp.int32, "mask": jnp.bool_}
_PREDICTED = "predicted"


def fields(config: Any) -> dict[str, Any]:
    """The arrays of a packed batch and their dtypes, for a model of `config`."""
    return FIELDS | ({"targets": jnp.int32} if predicts_hidden_tokens(config) else {})


def abstract_batch(recipe: Recipe, layout: StepLayout, names: dict[str, Any]) -> Any:
    """The shapes of a batch: ids, or with `recipe.packed` a dict of the fields `names`."""
    shape = (recipe.batch, recipe.seq)
    if not recipe.packed:
        return layout.rows(shape, jnp.int32)
    return {name: layout.rows(shape, dtype) for name, dtype in names.items()}


def with_predictions(batch: Any, micro: int) -> Any:
    """A packed batch that knows its predictions, as a mean over micro-batches of unequal ones must.

    Every row gets the mean number of predictions of a micro-batch. Other batches stay as they are.
    """
    if not isinstance(batch, dict):
        return batch
    mean = jnp.maximum(_predictions(batch), 1.0) / micro
    return batch | {_PREDICTED: jnp.broadcast_to(mean, batch["ids"].shape[:1])}


def share_of_mean(batch: dict) -> Array:
    """What the mean loss of a micro-batch counts: its predictions over those of a mean one."""
    return _predictions(batch) / batch[_PREDICTED][0] if _PREDICTED in batch else jnp.ones(())


def model_inputs(batch: Any) -> tuple[Array, dict[str, Array], Array | None]:
    """(ids, what else a model takes, which ids are to be predicted or None for all)."""
    if not isinstance(batch, dict):
        return batch, {}, None
    where = {name: batch[name] for name in ("segments", "positions")}
    return batch["ids"], where, batch["mask"]


def _predictions(batch: dict) -> Array:
    """The number of ids that are predicted; without targets the first of a row is none."""
    mask = batch["mask"] if "targets" in batch else batch["mask"][:, 1:]
    return mask.sum(dtype=jnp.float32)
