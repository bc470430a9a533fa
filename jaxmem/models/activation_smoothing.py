"""smooth and awq: y = (x / s)(s W), with an s that lowers the error of rounding x or W."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ..calibration.statistics import Moments
from ..core.arguments import takes
from ..core.codec import CODEC
from ..core.lazy import piece
from .model import Model
from .rescaling import ChannelLink, channel_links, check_dense, leaf_at, rescale

STRENGTHS = 20  # the number of strengths that awq tries, from 0 (no change) to 0.95


@takes()
def smooth(model: Model, stats: Mapping[str, Moments], *, strength: float = 0.5) -> Model:
    """The same function with smaller outliers in the activations, for products of 8-bit integers.

    Each channel is scaled by s = max|x|^strength / max|w|^(1 − strength), with the maximum over all
    matrices that read the channel. `stats` gives max|x| ("diag" moments are enough); a channel
    without stats stays. After it `jm.Dynamic(jm.Int(8))` has smaller errors. Each layer of a lazy
    model is read when it is used.

    Reference: SmoothQuant (Xiao et al., 2023).

    Raises:
        ValueError: `strength` is not between 0 and 1; `stats` has no weight of this model; the
            model is encoded, or its links are unknown.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmem as jm
        >>> from jaxmem.architectures import llama
        >>> sizes = dict(vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8)
        >>> config, ids = llama.Config(**sizes), jnp.arange(60).reshape(2, 30)
        >>> params = llama.module(config).init(jax.random.key(0), ids)["params"]
        >>> model = jm.models.Model(config, params, None, "random")
        >>> fed = jm.stats(model.apply, params, [(ids,)], moments="diag")
        >>> same = jm.models.smooth(model, fed)
        >>> bool(jnp.allclose(same.apply(same.params, ids), model.apply(params, ids), atol=1e-5))
        True
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"smooth takes a strength of 0 to 1, got {strength}")

    def scale(link: ChannelLink, moments: Moments, kernels: list[np.ndarray]) -> np.ndarray:
        largest = lambda w: np.abs(w).max((*range(w.ndim - 2), -1))  # w may be of all experts
        absmax = np.asarray(moments.absmax), np.max([largest(w) for w in kernels], 0)
        inputs, weights = (link.reduce_to_written(a, np.max) for a in absmax)
        known = (inputs > 0) & (weights > 0)
        inputs, weights = np.where(known, inputs, 1.0), np.where(known, weights, 1.0)
        return inputs**strength / weights ** (1 - strength)

    same = _rescale_links(model, stats, scale)
    return dataclasses.replace(same, source=f"{model.source}, smoothed by {strength}")


@takes(codec=CODEC)
def awq(model: Model, stats: Mapping[str, Moments], codec: Any) -> Model:
    """The same function with larger weights for strong inputs, so that rounding harms them less.

    Each channel is scaled by s = E[x²]^(a/2), divided by the geometric mean of its largest and
    least value. Of 20 values of a from 0 to 0.95 the one is taken that minimizes the error of the
    products, ‖x (Q(s W)/s − W)‖², where Q rounds by `codec`; with "gram" moments exactly, with
    "diag" moments as if inputs were uncorrelated. By this measure the result is never worse than
    without scales. Encode the result with the same codec; a codec that needs stats needs new ones.
    The paper uses mean |x| in place of √E[x²].

    Reference: AWQ (Lin et al., 2023).

    Raises:
        ValueError: `stats` has no weight of this model; the model is encoded, or its family is
            unknown.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmem as jm
        >>> from jaxmem.architectures import llama
        >>> sizes = dict(vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8)
        >>> config, ids = llama.Config(**sizes), jnp.arange(60).reshape(2, 30)
        >>> params = llama.module(config).init(jax.random.key(0), ids)["params"]
        >>> model = jm.models.Model(config, params, None, "random")
        >>> same = jm.models.awq(model, jm.stats(model.apply, params, [(ids,)]), jm.Int(4))
        >>> bool(jnp.allclose(same.apply(same.params, ids), model.apply(params, ids), atol=1e-5))
        True
    """
    strengths = jnp.arange(STRENGTHS, dtype=jnp.float32) / STRENGTHS

    def scale(link: ChannelLink, moments: Moments, kernels: list[np.ndarray]) -> np.ndarray:
        energy = jnp.asarray(link.reduce_to_written(np.asarray(moments.diag), np.mean))
        losses = _losses(codec, link, strengths, energy, kernels, moments)
        return np.asarray(_channel_scales(energy, strengths[jnp.argmin(losses)]))

    same = _rescale_links(model, stats, scale)
    return dataclasses.replace(same, source=f"{model.source}, scaled for {codec}")


def _rescale_links(model, stats, scale) -> Model:
    """The model with each link rescaled whose readers have stats.

    `scale(link, moments, kernels)` gives s of one layer. Norms are rescaled last, since the
    matrices after them are also changed by the other links.
    """
    check_dense(model)
    known = [link for link in channel_links(model.config) if link.readers[0] in stats]
    if not known:
        raise ValueError(f"the stats are of no matrix of {model.source} that could be rescaled")
    for link in sorted(known, key=lambda link: link.of_norm):
        kernels = [leaf_at(model.tensors, path) for path in link.readers]
        moments, stack = stats[link.readers[0]], kernels[0].shape[:-2]  # of a router, if any

        def layer(i, link=link, kernels=kernels, moments=moments):
            layer_moments = jax.tree.map(lambda a: a if i is None else a[i], moments)
            return scale(link, layer_moments, [piece(kernel, i) for kernel in kernels])

        if isinstance(kernels[0], jax.ShapeDtypeStruct):
            s = np.ones((*stack, kernels[0].shape[-2] // link.repeats))
        else:
            s = np.stack([layer(i) for i in range(stack[0])]) if stack else layer(None)
        model = rescale(model, {link: np.asarray(s, np.float32)})
    return model


def _channel_scales(energy: Array, strength: Array) -> Array:
    """E[x²]^(strength/2) over the geometric mean of its largest and least value, (channels,)."""
    energy = energy / jnp.where(energy.mean() > 0, energy.mean(), 1.0)
    s = jnp.maximum(energy, 1e-8) ** (strength / 2)
    return s / jnp.sqrt(s.max() * s.min())


@functools.partial(jax.jit, static_argnums=(0, 1))
def _losses(codec, link, strengths, energy, kernels, moments):
    """The squared error of the products with the kernels (k, n) for each strength, (strengths,)."""

    def loss(strength):
        s = link.expand_to_read(_channel_scales(energy, strength))
        scaled = _divide_moments(moments, s)
        total = 0.0
        for w in kernels:
            rounded = codec.encode(w * s[:, None], (-2,), scaled).decode()
            error = rounded / s[:, None] - w
            if moments.second.ndim == 1:
                total += (jnp.square(error) * moments.second[:, None]).sum()
            else:
                total += ((moments.second @ error) * error).sum()
        return total

    return lax.map(loss, strengths)


def _divide_moments(moments, s):
    """The moments of x / s."""
    second = moments.second / (s * s if moments.second.ndim == 1 else s[:, None] * s[None])
    return Moments(second, moments.mean / s, moments.absmax / s, moments.count)
