"""fresh: a model with new random weights, to train from the start."""

import dataclasses

import jax

from ..core.arguments import takes
from ..core.paths import is_whole
from ..models import Model
from ..models.example_inputs import example_inputs
from ..models.model import family


@takes()
def fresh(model: Model, *, seed: int = 0) -> Model:
    """The model with new random weights in f32, as its Flax module draws them.

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
    if isinstance(model.tensors, dict):
        shapes = lambda tree: jax.tree.map(lambda x: tuple(x.shape), tree, is_leaf=is_whole)
        if shapes(params) != shapes(model.tensors):
            raise ValueError(f"the module of {model.source} makes other params than it has")
    return dataclasses.replace(model, tensors=params)
