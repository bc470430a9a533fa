"""fresh: a model with new random weights, to train from the start."""

import dataclasses
from typing import Any

import jax
from jax import Array

from ..core.arguments import takes
from ..core.paths import is_whole
from ..models import Model
from ..models.example_inputs import example_inputs
from ..models.model import family

DEVIATION = 0.02  # of tables of vectors, as GPT-2, BERT and Llama draw theirs


@takes()
def fresh(model: Model, *, seed: int = 0) -> Model:
    """The model with new random weights in f32, as its Flax module draws them.

    Where the embedding is the head, too, tables of vectors have a standard deviation of .02
    (Radford et al., 2018), so that the first loss of a narrow model is near that of a uniform
    guess. T5's are left alone: what its head reads is scaled.

    Raises:
        ValueError: the module makes other params than the model has.

    Example:
        >>> import jax, jaxmem as jm
        >>> from jaxmem.architectures import llama
        >>> sizes = dict(vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8)
        >>> config = llama.Config(**sizes)
        >>> tiny = fresh(jm.models.Model(config, llama.module(config), None, "tiny"), seed=1)
        >>> tiny.params["embed"]["embedding"].shape
        (64, 32)
    """
    net = family(model.config).module(model.config)
    draw = jax.jit(lambda key, *inputs: net.init(key, *inputs)["params"])
    zeros = lambda x: jax.numpy.zeros(x.shape, x.dtype)
    params = draw(jax.random.key(seed), *map(zeros, example_inputs(model)))
    params = _with_narrow_head(model.config, params)
    if isinstance(model.tensors, dict):
        shapes = lambda tree: jax.tree.map(lambda x: tuple(x.shape), tree, is_leaf=is_whole)
        if shapes(params) != shapes(model.tensors):
            raise ValueError(f"the module of {model.source} makes other params than it has")
    return dataclasses.replace(model, tensors=params)


def _with_narrow_head(config: Any, params: dict) -> dict:
    """The params, whose tables of vectors have `DEVIATION` where one of them makes the logits."""
    tied = getattr(config, "tied", getattr(config, "head", None) == "masked_lm")
    if not tied or getattr(config, "head_scale", 1.0) != 1:
        return params

    def narrowed(path: tuple, x: Array) -> Array:  # drawn with a deviation of width**-.5
        is_table = getattr(path[-1], "key", None) == "embedding"
        return x * (DEVIATION * x.shape[-1] ** 0.5) if is_table else x

    return jax.tree.map_with_path(narrowed, params)
