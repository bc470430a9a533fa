"""The weights of a step as shapes, how the model reads them, and what is in host memory."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..compression.encoding import encode
from ..compression.plan import Plan
from ..core.leaf import decode
from ..core.paths import is_whole, match, paths
from ..core.usage import uses
from ..models import Model
from ..models.model import family
from ..offload.streamed_states import states_from_host
from ..offload.streamed_weights import from_host, layers_on_host
from ..optimizers.split_leaf import split_weights
from .model_head import hidden
from .recipe import Recipe

_WEIGHTS = ".*(kernel|embedding)"  # paths of the weights that are encoded


def bfloat16_shapes(model: Model) -> Any:
    """The shapes of a model's params in bfloat16."""
    narrow = lambda w: jax.ShapeDtypeStruct(w.shape, jnp.bfloat16)
    tensors = model.tensors
    if not isinstance(tensors, dict):  # a Flax module: there are no params yet
        ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
        tensors = jax.eval_shape(tensors.init, jax.random.key(0), ids)["params"]
    return jax.tree.map(narrow, tensors, is_leaf=is_whole)


def encoded_shapes(recipe: Recipe, model: Model) -> Any:
    """The shapes of a model's params, encoded as the recipe says."""
    return encoded_weights(recipe, model, bfloat16_shapes(model))


def encoded_weights(recipe: Recipe, model: Model, params: Any) -> Any:
    """The params in bfloat16, or in the form that the recipe says."""
    if recipe.weights == "split":  # of f32 weights, which keep what bfloat16 does not hold
        shapes = any(isinstance(w, jax.ShapeDtypeStruct) for w in jax.tree.leaves(params))
        return jax.eval_shape(split_weights, params) if shapes else split_weights(params)
    narrow = lambda w: w if isinstance(w, jax.ShapeDtypeStruct) else w.astype(jnp.bfloat16)
    params = jax.tree.map(narrow, params)  # the leaves that the recipe's plan was compiled with
    if recipe.encoding is None:
        return params
    plan = Plan({path: recipe.encoding for path in match(paths(params), {_WEIGHTS: True})})
    return encode(params, plan, uses=weight_usage(model))


def loss_of_form(recipe: Recipe, loss: Callable) -> Callable:
    """The loss of params in the form that a recipe trains them in, with which models are called."""
    return loss if recipe.weights != "split" else lambda params, batch: loss(decode(params), batch)


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
    # what is fetched is a slice that a scan takes
    fn = functools.partial(hidden, config, slices_layers=bool(recipe.host))
    if recipe.host_states:
        return states_from_host(fn, only=recipe.host_states, weights=recipe.host_weights)
    return from_host(fn, only=recipe.host) if recipe.host else fn
