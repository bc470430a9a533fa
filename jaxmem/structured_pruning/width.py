"""remove_width: the residual stream rotated to its principal axes, without the last of them."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from ..core.arguments import takes
from ..models.model import Model
from .input_removal import DAMPING, moments_of
from .smaller_model import copy_dicts, smaller_model

READS = {"attn": ("q", "k", "v"), "mlp": ("gate", "up")}  # the projections after each norm
WRITES = {"attn": "out", "mlp": "down"}


@takes()
def remove_width(model: Model, width: int, stats: Mapping) -> Model:
    """The model of the Llama family with a residual stream of `width` numbers.

    One orthogonal matrix rotates the stream of all layers, as `jm.models.rotate` does: the
    eigenvectors of the mean second moment of the norms' outputs. The axes with the least energy are
    removed. The projections that read the stream are refitted to the remaining axes by least
    squares over their own moments, and the gain of each norm becomes one number that corrects for
    the missing energy. The head is untied, which adds vocab · width weights to a model with a tied
    head. Ashkboos et al., 2024 (SliceGPT; its matrices differ between layers, which a plain model
    cannot run).

    Raises:
        ValueError: the model is not of the Llama family, or has norms after its blocks; `width` is
            less than 1 or not below the model's; `stats` has no Gram matrices; a gain is zero.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmem as jm
        >>> from jaxmem.architectures import llama
        >>> sizes = dict(vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8)
        >>> config, ids = llama.Config(**sizes), jnp.arange(60).reshape(2, 30)
        >>> shapes = jax.eval_shape(llama.module(config).init, jax.random.key(0), ids)["params"]
        >>> params = jax.tree.map(lambda s: jnp.full(s.shape, 0.1), shapes)
        >>> model = jm.models.Model(config, params, None, "blank")
        >>> smaller = remove_width(model, 24, jm.stats(model.apply, params, [(ids,)]))
        >>> smaller.params["layers"]["mlp"]["up"]["kernel"].shape
        (2, 24, 48)
        >>> jax.eval_shape(smaller.apply, smaller.params, ids).shape
        (2, 30, 64)
    """
    config = model.config
    if config.family != "llama" or config.post_norms or config.norm_offset:
        raise ValueError(f"{model.source} cannot be rotated: expected a Llama without post-norms")
    if not 0 < width < config.width:
        raise ValueError(f"a width of {width} is to stay of {config.width}, expected fewer, some")
    params = copy_dicts(model.params)
    blocks, embed = params["layers"], params["embed"]["embedding"]
    inputs = {part: _norm_moments(stats, blocks, part) for part in READS}
    vectors = np.linalg.eigh(sum(m.mean(0) for m in inputs.values()))[1][:, ::-1]
    turn = jnp.asarray(vectors[:, :width], embed.dtype)
    energy = lambda m: np.einsum("lij,ik,jk->l", m, vectors[:, :width], vectors[:, :width])
    whole = lambda m: np.trace(m, axis1=-2, axis2=-1)

    for part, names in READS.items():
        gain = blocks[f"{part}_norm"]["scale"]
        fit = jnp.asarray(_refit(inputs[part], vectors[:, :width]), embed.dtype)
        for name in names:
            kernel = blocks[part][name]["kernel"]
            kernel = jnp.einsum("lkd,ld,ldn->lkn", fit, gain, kernel)
            blocks[part][name] = {**blocks[part][name], "kernel": kernel}
        last = blocks[part][WRITES[part]]
        blocks[part][WRITES[part]] = {**last, "kernel": last["kernel"] @ turn}
        # The norm divides by √(remaining energy / width), before by √(energy / config.width).
        share = np.sqrt(energy(inputs[part]) / whole(inputs[part]) * config.width / width)
        ones = np.repeat(share[:, None], width, 1)
        blocks[f"{part}_norm"] = {"scale": jnp.asarray(ones, gain.dtype)}
    final = params["final_norm"]["scale"]
    head = embed.T if config.tied else params["head"]["kernel"]
    params["head"] = {"kernel": turn.T @ (final[:, None] * head)}
    params["embed"] = {"embedding": embed @ turn}
    share = np.sqrt(energy(inputs["mlp"][-1:]) / whole(inputs["mlp"][-1:]) * config.width / width)
    params["final_norm"] = {"scale": jnp.full((width,), share[0], final.dtype)}
    change = f"{width} of {config.width} wide"
    return smaller_model(model, params, change, width=width, tied=False)


def _refit(moments: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """The least squares fit (layers, k, d) of inputs x (d,) by x · axes, with axes (d, k).

    `moments` (layers, d, d) are E[x xᵀ]. Damped towards the axes, so that the fit is exact where
    the axes lose nothing.
    """
    damping = DAMPING * np.trace(moments, axis1=-2, axis2=-1)[:, None, None] / moments.shape[-1]
    damping = np.where(damping > 0, damping, 1.0)
    seen = axes.T @ moments
    return np.linalg.solve(seen @ axes + damping * np.eye(axes.shape[1]), seen + damping * axes.T)


def _norm_moments(stats, blocks, part) -> np.ndarray:
    """E[x xᵀ] (layers, d, d) of the output of the norm before `part`, without its gain."""
    gram = np.asarray(
        moments_of(stats, f"layers/{part}/{READS[part][0]}/kernel").second, np.float64
    )
    gain = np.asarray(blocks[f"{part}_norm"]["scale"], np.float64)
    if (gain == 0).any():
        raise ValueError(f"layers/{part}_norm/scale holds a gain of zero, which hides its input")
    return gram / (gain[:, :, None] * gain[:, None, :])
