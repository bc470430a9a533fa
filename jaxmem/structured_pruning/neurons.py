"""remove_neurons: a narrower feed-forward layer, whose `down` makes up for what is gone."""

import dataclasses
from collections.abc import Mapping

import jax

from ..models.model import Model
from .input_removal import moments_of, remove_inputs, take_runs

DOWN = "layers/mlp/down/kernel"


def remove_neurons(model: Model, ffn: int, stats: Mapping) -> Model:
    """The model with `ffn` neurons in the feed-forward part of each layer.

    Every layer loses those whose loss is least once `down` is refitted to what is left, and keeps
    them in order. Works for every family. Kurtic et al., 2023 (ZipLM).

    Raises:
        ValueError: `ffn` is not below the model's, or below 1; stats without Gram matrices.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmem as jm
        >>> from jaxmem.architectures import llama
        >>> sizes = dict(vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8)
        >>> config, ids = llama.Config(**sizes), jnp.arange(60).reshape(2, 30)
        >>> shapes = jax.eval_shape(llama.module(config).init, jax.random.key(0), ids)["params"]
        >>> params = jax.tree.map(lambda s: jnp.full(s.shape, 0.1), shapes)
        >>> model = jm.models.Model(config, params, None, "blank")
        >>> smaller = remove_neurons(model, 36, jm.stats(model.apply, params, [(ids,)]))
        >>> smaller.params["layers"]["mlp"]["up"]["kernel"].shape, smaller.config.ffn
        ((2, 32, 36), 36)
        >>> jax.eval_shape(smaller.apply, smaller.params, ids).shape
        (2, 30, 64)
    """
    now = model.config.ffn
    if not 0 < ffn < now:
        raise ValueError(f"{ffn} neurons are to stay of {now}, expected at least 1 and fewer")
    params = jax.tree.map(lambda x: x, model.params)  # new dicts, the same arrays
    mlp = params["layers"]["mlp"]
    stay, mlp["down"] = remove_inputs(mlp["down"], moments_of(stats, DOWN), (0,) * now, now - ffn)
    for name in set(mlp) - {"down"}:
        mlp[name] = {part: take_runs(w, stay, now) for part, w in mlp[name].items()}
    source = f"{model.source}, {ffn} of {now} neurons"
    return Model(dataclasses.replace(model.config, ffn=ffn), params, model.tokenizer, source)
