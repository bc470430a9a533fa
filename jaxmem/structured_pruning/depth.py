"""remove_layers: a model with fewer layers, and two ways to choose which layers to remove."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..core.arguments import IDS, INTEGERS, takes
from ..core.fold import Fold
from ..core.paths import check_same_tree, paths
from ..models.model import Model, family
from ..solvers.pruning_scores import magnitude
from ..train.output_losses import divergence
from .smaller_model import check_layers, smaller_model


@takes(gone=INTEGERS)
def remove_layers(model: Model, gone: Sequence[int]) -> Model:
    """The model without the layers `gone`; the remaining layers are stacked again for the scan.

    Raises:
        ValueError: `gone` is empty, or names all layers, a layer twice, or a layer that the model
            does not have; the model has experts or multi-latent attention.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmem as jm
        >>> from jaxmem.architectures import gpt2
        >>> config, ids = gpt2.Config(vocab=64, width=32, layers=3, heads=4), jnp.ones((1, 5), int)
        >>> shapes = jax.eval_shape(gpt2.module(config).init, jax.random.key(0), ids)["params"]
        >>> params = jax.tree.map(lambda s: jnp.full(s.shape, 0.1), shapes)
        >>> smaller = remove_layers(jm.models.Model(config, params, None, "blank"), [1])
        >>> smaller.config.layers, jax.eval_shape(smaller.apply, smaller.params, ids).shape
        (2, (1, 5, 64))
    """
    check_layers(model)
    layers, gone = model.config.layers, sorted(gone)
    fits = set(gone) <= set(range(layers)) and 0 < len(gone) < layers
    if not fits or len(set(gone)) < len(gone):
        raise ValueError(f"layers {gone} are to go of {layers}, expected some of them, once")
    keep = [i for i in range(layers) if i not in gone]
    params = _only(model.params, jnp.asarray(keep))
    return smaller_model(model, params, f"without layers {gone}", **_sizes(model.config, keep))


@takes(ids=IDS)
def least_missed(model: Model, count: int, ids: Array) -> list[int]:
    """The `count` layers to remove, chosen one after the other by the least KL to the whole model.

    For an encoder, which gives no distribution, the squared distance of the hidden vectors is used.
    The layers are in the order of removal, so the first n are the choice for n layers. `ids` (rows,
    tokens) is the text to compare on; a few hundred tokens suffice. The model is run about count ·
    layers times. Song et al., 2024 (SLEB).

    Raises:
        ValueError: `count` is less than 1, or leaves no layer.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmem as jm
        >>> from jaxmem.architectures import gpt2
        >>> config, ids = gpt2.Config(vocab=64, width=32, layers=3, heads=4), jnp.ones((1, 5), int)
        >>> shapes = jax.eval_shape(gpt2.module(config).init, jax.random.key(0), ids)["params"]
        >>> params = jax.tree.map(lambda s: jnp.full(s.shape, 0.1), shapes)
        >>> len(least_missed(jm.models.Model(config, params, None, "blank"), 2, ids))
        2
    """
    layers = _layers(model, count)
    whole = jax.jit(model.apply)(model.params, ids)
    gone = []
    for _ in range(count):
        losses = {}
        for layer in set(range(layers)) - set(gone):
            keep = [i for i in range(layers) if i not in (*gone, layer)]
            config = dataclasses.replace(model.config, **_sizes(model.config, keep))
            loss = _output_distance(config, model.params, jnp.asarray(keep), ids, whole)
            losses[layer] = float(loss)
        gone.append(min(losses, key=losses.get))
    return gone


@takes()
def least_worth(
    model: Model,
    count: int,
    score: Callable[[Array, Any], Array] = magnitude,
    stats: Mapping | None = None,
) -> list[int]:
    """The `count` layers whose weights have the least score of `jm.solvers.pruning_scores`.

    The worth of a layer is its share of the scores of each stacked matrix, averaged over the
    matrices. `least_missed`, which runs the model, chooses better.

    Raises:
        ValueError: `count` is less than 1, or leaves no layer.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmem as jm
        >>> from jaxmem.architectures import gpt2
        >>> config, ids = gpt2.Config(vocab=64, width=32, layers=3, heads=4), jnp.ones((1, 5), int)
        >>> shapes = jax.eval_shape(gpt2.module(config).init, jax.random.key(0), ids)["params"]
        >>> params = jax.tree.map(lambda s: jnp.ones(s.shape), shapes)
        >>> params["layers"] = jax.tree.map(
        ...     lambda w: jax.vmap(jnp.multiply)(jnp.array([3.0, 1.0, 2.0]), w), params["layers"])
        >>> model = jm.models.Model(config, params, None, "blank")
        >>> least_worth(model, 2)
        [1, 2]
    """
    layers = _layers(model, count)
    check_same_tree(paths(model.params), stats=stats)
    worth = np.zeros(layers)
    for path, leaf in zip(paths(model.params), jax.tree.leaves(model.params)):
        if not (path.startswith("layers/") and path.endswith("/kernel")):
            continue
        moments = (stats or {}).get(path)
        total = lambda w, s: score(Fold.from_weight(w, (-2,))[0].astype(jnp.float32), s).sum()
        by_layer = [jax.tree.map(lambda a, i=i: a[i], moments) for i in range(layers)]
        sums = np.array([total(leaf[i], by_layer[i]) for i in range(layers)])
        worth += sums / max(sums.sum(), np.finfo(np.float64).tiny)
    return [int(i) for i in worth.argsort(kind="stable")[:count]]


def _layers(model, count):
    """The number of layers, if `count` of them can be removed."""
    layers = model.config.layers
    if not 0 < count < layers:
        raise ValueError(f"{count} of {layers} layers are to go, expected some and not all")
    return layers


@functools.partial(jax.jit, static_argnums=0)
def _output_distance(config, params, keep, ids, whole):
    """Mean KL(whole ‖ the layers `keep`) of logits; an encoder's mean squared distance."""
    output = family(config).module(config).apply({"params": _only(params, keep)}, ids)
    if config.family in ("bert", "encoder"):
        return jnp.square(whole - output).sum(-1).mean()
    return divergence(whole, output)


def _sizes(config, keep) -> dict:
    """The fields of a configuration that change if only the layers `keep` remain."""
    lists = {name: getattr(config, name, ()) for name in ("local", "no_rope")}
    kept = {name: tuple(x[i] for i in keep) for name, x in lists.items() if x}
    return {"layers": len(keep)} | kept


def _only(params, keep):
    """The params with only the layers `keep`."""
    layers = jax.tree.map(lambda a: jnp.take(a, keep, 0), params["layers"])
    return {**params, "layers": layers}
