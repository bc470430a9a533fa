"""A model with some of its structure removed: new params, and a configuration of new sizes."""

import dataclasses
from typing import Any

import jax

from ..models.model import Model


def copy_dicts(params: dict) -> dict:
    """New nested dicts with the same arrays, so that entries can be replaced."""
    return jax.tree.map(lambda x: x, params)


def check_layers(model: Model) -> None:
    """Refuses a model whose layers are not one stack of plain attention and one MLP.

    Raises:
        ValueError: it is an encoder-decoder, has a mixture of experts, multi-latent attention or
            recurrent layers, its layers share their weights, or the first one has no norm.
    """
    if model.config.family == "seq2seq":
        raise ValueError(f"{model.source} is an encoder-decoder, expected a single stack of layers")
    for name in ("mixture", "latent", "recurrence", "shared", "bare_start"):
        if getattr(model.config, name, None):
            raise ValueError(
                f"{model.source} has {name}={getattr(model.config, name)}, expected layers of "
                "attention and one MLP, which alone can be made smaller"
            )


def smaller_model(model: Model, params: dict, change: str, **sizes: Any) -> Model:
    """`model` with other params and sizes; `change` is appended to its source."""
    config = dataclasses.replace(model.config, **sizes)
    source = f"{model.source}, {change}"
    return dataclasses.replace(model, config=config, tensors=params, source=source)
