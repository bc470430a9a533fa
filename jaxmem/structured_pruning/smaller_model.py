"""A model with some of its structure removed: new params, and a configuration of new sizes."""

import dataclasses
from typing import Any

import jax

from ..models.model import Model


def copy_dicts(params: dict) -> dict:
    """New nested dicts with the same arrays, so that entries can be replaced."""
    return jax.tree.map(lambda x: x, params)


def smaller_model(model: Model, params: dict, change: str, **sizes: Any) -> Model:
    """`model` with other params and sizes; `change` is appended to its source."""
    config = dataclasses.replace(model.config, **sizes)
    return Model(config, params, model.tokenizer, f"{model.source}, {change}")
