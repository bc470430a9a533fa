"""forward_of: a model's `apply` under jit; models of one configuration share its programs."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from .model import Model


def forward_of(model: Model) -> Callable:
    """`jax.jit(model.apply)`, the same function for each model of a configuration.

    Example:
        >>> import dataclasses, jaxmem as jm
        >>> model = jm.models.load("llama-8b")
        >>> forward_of(model) is forward_of(dataclasses.replace(model, source="another"))
        True
    """
    return jax.jit(model.apply) if type(model) is not Model else _of_config(model.config)


@functools.lru_cache(maxsize=8)
def _of_config(config: Any) -> Callable:
    return jax.jit(Model(config, {}, None, "").apply)
