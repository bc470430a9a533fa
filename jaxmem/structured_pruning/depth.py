"""remove_layers: a shallower model, without the layers that its output misses least."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ..core.fold import Fold
from ..core.paths import paths
from ..models.model import Model, family
from ..solvers.pruning_scores import magnitude
from ..train.losses import divergence


def remove_layers(model: Model, gone: Sequence[int]) -> Model:
    """The model without the layers `gone`; the others are stacked for the scan again.

    Raises:
        ValueError: no layer, all of them, one twice, or one that is not there.

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
    layers, gone = model.config.layers, sorted(gone)
    fits = set(gone) <= set(range(layers)) and 0 < len(gone) < layers
    if not fits or len(set(gone)) < len(gone):
        raise ValueError(f"layers {gone} are to go of {layers}, expected some of them, once")
    keep = [i for i in range(layers) if i not in gone]
    params = _only(model.params, jnp.asarray(keep))
    source = f"{model.source}, without layers {gone}"
    return Model(_config(model.config, keep), params, model.tokenizer, source)


def least_missed(model: Model, count: int, ids: Array) -> list[int]:
    """The `count` layers that go first: each that with the least KL to the whole model without it.

    (An encoder gives no distribution: there it is the squared distance of the hidden vectors.)

    In the order in which they go, so that fewer of them are the first ones. `ids` (rows, tokens) is
    text to judge by; a few hundred tokens tell. Each choice knows of those before it. Runs the
    model about count · layers times. Song et al., 2024 (SLEB).

    Raises:
        ValueError: a count that leaves no layer, or none to remove.

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
            given = _config(model.config, keep), model.params, jnp.asarray(keep), ids, whole
            losses[layer] = float(_divergence(*given))
        gone.append(min(losses, key=losses.get))
    return gone


def least_worth(
    model: Model,
    count: int,
    score: Callable[[Array, Any], Array] = magnitude,
    stats: Mapping | None = None,
) -> list[int]:
    """The `count` layers whose weights are worth least by a score of `jm.solvers.pruning_scores`.

    A layer is worth its share of the scores of each matrix, on average over the matrices. So layers
    are a pattern like any other, for any score; `least_missed` runs the model and tells better.

    Raises:
        ValueError: a count that leaves no layer, or none to remove.

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
    worth = np.zeros(layers)
    for path, leaf in zip(paths(model.params), jax.tree.leaves(model.params)):
        if not (path.startswith("layers/") and path.endswith("/kernel")):
            continue
        own = (stats or {}).get(path)
        of = lambda w, s: score(Fold.from_weight(w, (-2,))[0].astype(jnp.float32), s).sum()
        sums = np.array([of(leaf[i], jax.tree.map(lambda a: a[i], own)) for i in range(layers)])  # noqa: B023
        worth += sums / max(sums.sum(), np.finfo(np.float64).tiny)
    return [int(i) for i in worth.argsort(kind="stable")[:count]]


def _layers(model, count):
    """How many layers there are, of which `count` can go."""
    layers = model.config.layers
    if not 0 < count < layers:
        raise ValueError(f"{count} of {layers} layers are to go, expected some and not all")
    return layers


@functools.partial(jax.jit, static_argnums=0)
def _divergence(config, params, keep, ids, whole):
    """Mean KL of the logits of the layers `keep` to those of the whole model."""
    found = family(config).module(config).apply({"params": _only(params, keep)}, ids)
    if config.family == "bert":
        return jnp.square(whole - found).sum(-1).mean()
    return divergence(whole, found)


def _config(config, keep):
    """The configuration of the layers `keep`; where layers differ, of those."""
    new = {"layers": len(keep)}
    if getattr(config, "local", ()):
        new["local"] = tuple(config.local[i] for i in keep)
    return dataclasses.replace(config, **new)


def _only(params, keep):
    layers = jax.tree.map(lambda a: jnp.take(a, keep, 0), params["layers"])
    return {**params, "layers": layers}
