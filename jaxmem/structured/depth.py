"""remove_layers: a shallower model, without the layers that its output misses least."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from ..models.model import Model, family


def remove_layers(model: Model, keep: Sequence[int]) -> Model:
    """The model with the layers `keep` alone, in their order, stacked for the scan again.

    Raises:
        ValueError: no layer, all of them, one twice, or one that is not there.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmem as jm
        >>> from jaxmem.models import gpt2
        >>> config, ids = gpt2.Config(vocab=64, width=32, layers=3, heads=4), jnp.ones((1, 5), int)
        >>> params = gpt2.module(config).init(jax.random.key(0), ids)["params"]
        >>> smaller = remove_layers(jm.models.Model(config, params, None, "random"), [0, 2])
        >>> smaller.config.layers, smaller.apply(smaller.params, ids).shape
        (2, (1, 5, 64))
    """
    layers, keep = model.config.layers, sorted(keep)
    fits = set(keep) <= set(range(layers)) and 0 < len(keep) < layers
    if not fits or len(set(keep)) < len(keep):
        raise ValueError(f"layers {keep} are to stay of {layers}, expected some of them, once")
    params = _only(model.params, jnp.asarray(keep))
    source = f"{model.source}, layers {keep}"
    return Model(_config(model.config, keep), params, model.tokenizer, source)


def fewest_missed(model: Model, count: int, ids: Array) -> list[int]:
    """The layers to keep when `count` go: one at a time, that with the least KL to the whole model.

    `ids` (rows, tokens) is text to judge by; a few hundred tokens tell. Each choice knows of those
    before it. Runs the model about count · layers times. Song et al., 2024 (SLEB).

    Raises:
        ValueError: a count that leaves no layer, or none to remove.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmem as jm
        >>> from jaxmem.models import gpt2
        >>> config, ids = gpt2.Config(vocab=64, width=32, layers=3, heads=4), jnp.ones((1, 5), int)
        >>> params = gpt2.module(config).init(jax.random.key(0), ids)["params"]
        >>> len(fewest_missed(jm.models.Model(config, params, None, "random"), 1, ids))
        2
    """
    layers = model.config.layers
    if not 0 < count < layers:
        raise ValueError(f"{count} of {layers} layers are to go, expected some and not all")
    whole = jax.nn.log_softmax(jax.jit(model.apply)(model.params, ids))
    keep = list(range(layers))
    for _ in range(count):
        tried = [[i for i in keep if i != gone] for gone in keep]
        loss = lambda keep: float(
            _divergence(_config(model.config, keep), model.params, jnp.asarray(keep), ids, whole)
        )
        losses = [loss(keep) for keep in tried]
        keep = tried[losses.index(min(losses))]
    return keep


@functools.partial(jax.jit, static_argnums=0)
def _divergence(config, params, keep, ids, whole):
    """Mean KL of the logits of the layers `keep` to log-probabilities of the whole model."""
    logits = family(config).module(config).apply({"params": _only(params, keep)}, ids)
    guess = jax.nn.log_softmax(logits)
    return (jnp.exp(whole) * (whole - guess)).sum(-1).mean()


def _config(config, keep):
    """The configuration of the layers `keep`; where layers differ, of those."""
    new = {"layers": len(keep)}
    if getattr(config, "local", ()):
        new["local"] = tuple(config.local[i] for i in keep)
    return dataclasses.replace(config, **new)


def _only(params, keep):
    layers = jax.tree.map(lambda a: jnp.take(a, keep, 0), params["layers"])
    return {**params, "layers": layers}
