"""The weights of a step as shapes, how the model reads them, and what is in host memory."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..core.paths import is_whole
from ..core.usage import uses
from ..models import Model
from ..models.model import family
from ..offload.streamed_states import states_from_host
from ..offload.streamed_weights import from_host, layers_on_host
from .model_head import hidden
from .recipe import Recipe


def bfloat16_shapes(model: Model) -> Any:
    """The shapes of a model's params in bfloat16."""
    narrow = lambda w: jax.ShapeDtypeStruct(w.shape, jnp.bfloat16)
    tensors = model.tensors
    if not isinstance(tensors, dict):  # a Flax module: there are no params yet
        ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
        tensors = jax.eval_shape(tensors.init, jax.random.key(0), ids)["params"]
    return jax.tree.map(narrow, tensors, is_leaf=is_whole)


def weight_usage(model: Model) -> Any:
    """How the model reads its weights, as `jm.uses` tells it."""
    ids = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    net = family(model.config).module(model.config)
    return uses(lambda p, ids: net.apply({"params": p}, ids), bfloat16_shapes(model), ids)


def with_host(recipe: Recipe, params: Any) -> Any:
    """The params with the stacks in host memory that the recipe names."""
    names = recipe.host_weights
    return layers_on_host(params, only=names) if names else params


def cache_with_host(recipe: Recipe, cache: Any) -> Any:
    """A cache or pool with the stacks of layers in host memory that the recipe names."""
    names = recipe.host_states
    return layers_on_host(cache, only=names) if names else cache


def fetching_hidden(recipe: Recipe, config: Any) -> Callable:
    """`hidden` of a config, which fetches the layers that the recipe leaves in host memory."""
    fn = functools.partial(hidden, config)
    if recipe.host_states:
        return states_from_host(fn, only=recipe.host_states, weights=recipe.host_weights)
    return from_host(fn, only=recipe.host) if recipe.host else fn
