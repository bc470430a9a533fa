"""fresh: a model with new random weights, to train from the start."""

import dataclasses
from typing import Any

import jax

from ..core.arguments import takes
from ..core.paths import is_whole
from ..models import Model
from ..models.example_inputs import example_inputs
from ..models.model import family

TIED_DEVIATION = 0.02  # of a table that is the head, too, as GPT-2, BERT and Llama draw theirs


@takes()
def fresh(model: Model, *, seed: int = 0) -> Model:
    """The model with new random weights in f32, as its Flax module draws them.

    An embedding that is the head, too, has a standard deviation of .02 (Radford et al., 2018), so
    that the first loss of a narrow model is near that of a uniform guess. T5's is left alone: what
    its head reads is scaled.

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
    """The params, whose embedding is scaled to `TIED_DEVIATION` where it makes the logits."""
    tied = getattr(config, "tied", getattr(config, "head", None) == "masked_lm")
    if not tied or getattr(config, "head_scale", 1.0) != 1:
        return params
    table = params["embed"]["embedding"]  # (vocab, width), drawn with a deviation of width**-.5
    factor = TIED_DEVIATION * table.shape[1] ** 0.5
    return params | {"embed": {**params["embed"], "embedding": table * factor}}
