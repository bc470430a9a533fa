"""smooth and awq: y = (x / s)(s W), with an s that leaves less to lose when x or W is rounded."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ..calibration.statistics import Moments
from ..core.lazy import piece
from .model import Model
from .rescaling import Joint, check_dense, find, joints, rescaled

STEPS = 20  # strengths that awq tries, from 0 (as it was) to 0.95


def smooth(model: Model, stats: Mapping[str, Moments], *, strength: float = 0.5) -> Model:
    """The same function with large activations made smaller, for products of 8-bit integers.

    s = max|x|^strength / max|w|^(1 − strength) for each channel, over all matrices that read it;
    `stats` ("diag" moments are enough) say what they are fed, and channels without stats stay. Then
    `jm.Dynamic(jm.Int(8))` loses less to channels that stand out. A layer is read when it is used.

    Reference: SmoothQuant (Xiao et al., 2023).

    Raises:
        ValueError: strength outside 0 to 1; no stats of this model; an encoded model, or one whose
            family is not known.

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

    def scale(joint: Joint, moments: Moments, kernels: list[np.ndarray]) -> np.ndarray:
        most = np.max([np.abs(w).max(-1) for w in kernels], 0)
        fed, held = (joint.narrow(a, np.max) for a in (np.asarray(moments.absmax), most))
        known = (fed > 0) & (held > 0)
        fed, held = np.where(known, fed, 1.0), np.where(known, held, 1.0)
        return fed**strength / held ** (1 - strength)

    same = _folded(model, stats, scale)
    return dataclasses.replace(same, source=f"{model.source}, smoothed by {strength}")


def awq(model: Model, stats: Mapping[str, Moments], codec: Any) -> Model:
    """The same function with the weights of strong inputs made larger: rounding spares them.

    s = E[x²]^(a/2), over the root of its largest and least, with the a of 20 from 0 to 0.95 for
    which rounding by `codec` changes least of what the matrices compute, ‖x (Q(s W)/s − W)‖² over
    the inputs seen ("gram" moments), or with "diag" moments as if these did not go together. Never
    worse than no scale by that measure. Encode the result with the same codec; take stats of it
    first for a codec that wants them. The paper takes mean |x| for √E[x²].

    Reference: AWQ (Lin et al., 2023).

    Raises:
        ValueError: no stats of this model; an encoded model, or one whose family is not known.

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
    strengths = jnp.arange(STEPS, dtype=jnp.float32) / STEPS

    def scale(joint: Joint, moments: Moments, kernels: list[np.ndarray]) -> np.ndarray:
        fed = joint.narrow(np.asarray(moments.diag), np.mean)
        losses = _losses(codec, joint, strengths, jnp.asarray(fed), kernels, moments)
        return np.asarray(_strong(jnp.asarray(fed), strengths[jnp.argmin(losses)]))

    same = _folded(model, stats, scale)
    return dataclasses.replace(same, source=f"{model.source}, scaled for {codec}")


def _folded(model, stats, scale) -> Model:
    """The model with each joint whose readers have stats rescaled, by `scale` of a layer at a time.

    Norms come last: the matrices that read them are what the other joints have made of them.
    """
    check_dense(model)
    known = [joint for joint in joints(model.config) if joint.readers[0] in stats]
    if not known:
        raise ValueError(f"the stats are of no matrix of {model.source} that could be rescaled")
    for joint in sorted(known, key=lambda joint: joint.of_norm):
        kernels = [find(model.tensors, path) for path in joint.readers]
        moments, stack = stats[joint.readers[0]], kernels[0].shape[:-2]

        def layer(i, joint=joint, kernels=kernels, moments=moments):
            own = jax.tree.map(lambda a: a if i is None else a[i], moments)
            return scale(joint, own, [piece(kernel, i) for kernel in kernels])

        if isinstance(kernels[0], jax.ShapeDtypeStruct):
            s = np.ones((*stack, kernels[0].shape[-2] // joint.repeats))
        else:
            s = np.stack([layer(i) for i in range(stack[0])]) if stack else layer(None)
        model = rescaled(model, {joint: np.asarray(s, np.float32)})
    return model


def _strong(energy: Array, strength: Array) -> Array:
    """E[x²]^(strength/2), its largest and least as far above 1 as below."""
    energy = energy / jnp.where(energy.mean() > 0, energy.mean(), 1.0)
    s = jnp.maximum(energy, 1e-8) ** (strength / 2)
    return s / jnp.sqrt(s.max() * s.min())


@functools.partial(jax.jit, static_argnums=(0, 1))
def _losses(codec, joint, strengths, energy, kernels, moments):
    """What rounding the scaled kernels (k, n) changes of what they compute, for each strength."""

    def loss(strength):
        s = joint.wide(_strong(energy, strength))
        fed = _divided(moments, s)
        total = 0.0
        for w in kernels:
            held = codec.encode(w * s[:, None], (-2,), fed).decode()
            wrong = held / s[:, None] - w
            if moments.second.ndim == 1:
                total += (jnp.square(wrong) * moments.second[:, None]).sum()
            else:
                total += ((moments.second @ wrong) * wrong).sum()
        return total

    return lax.map(loss, strengths)


def _divided(moments, s):
    second = moments.second / (s * s if moments.second.ndim == 1 else s[:, None] * s[None])
    return Moments(second, moments.mean / s, moments.absmax / s, moments.count)
