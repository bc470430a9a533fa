"""rotate: q' = Qᵀ diag(g) q, out' = out Q, embed' = embed Q: the same function in another basis."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np

from ..architectures.configs.segments import segments
from ..core.arguments import takes
from ..core.hadamard import hadamard
from ..core.lazy import combined, is_lazy
from ..core.leaf import is_encoded
from .model import Model
from .rescaling import channel_links, check_dense, leaf_at, replace_leaf
from .residual_stream import readers, writers

Basis = Literal["random", "hadamard"]


@takes()
def rotate(model: Model, *, seed: int = 0, basis: Basis = "random") -> Model:
    """The same function with its residual stream rotated by an orthogonal matrix.

    The gain of each norm is folded into the matrices after it. The head is untied, since the last
    gain is folded into the head and not into the embedding: `head/kernel` adds vocab × width
    weights. The rotation moves weights that were quantized before off their grid, so that
    quantizing them again is a fair test; a random basis also spreads outliers. Prune after the
    rotation, never before: zeros do not survive it. Logits stay within 1e-4 in float32.

    Lazy tensors stay lazy: a layer is rotated when it is read. The random matrix is uniform over
    orthogonal matrices and depends only on `seed`.

    Reference: SliceGPT (Ashkboos et al., 2024), QuaRot (Ashkboos et al., 2024).

    Raises:
        ValueError: there is no matrix of this basis and width; the model is encoded, is no decoder,
            or has what a rotation does not pass, which the message names: norms that subtract a
            mean, norms after the blocks, a norm of the embedding, layers with a state.

    Example:
        >>> import jaxmem as jm
        >>> model = jm.models.rotate(jm.models.load("llama-1b"))
        >>> model.config.tied, model.params["head"]["kernel"].shape
        (False, (2048, 128256))
    """
    config = model.config
    if in_the_way := _in_the_way(config):
        raise ValueError(
            f"{model.source} cannot be rotated: it {in_the_way}; expected a decoder with RMS norms "
            "before its blocks, and without a state"
        )
    leaf = lambda x: is_lazy(x) or is_encoded(x)
    if any(map(is_encoded, jax.tree.leaves(model.tensors, is_leaf=leaf))):
        raise ValueError(f"{model.source} is encoded; rotate the dense model and encode that")
    tree = model.tensors
    embed, final = tree["embed"]["embedding"], "final_norm/scale"
    abstract = isinstance(embed, jax.ShapeDtypeStruct)
    turn = None if abstract else matrix(config.width, seed, basis).astype(np.float32)

    into = lambda w, gain=0.0: (turn.T * (gain + offset)) @ w
    out_of = lambda w: w @ turn
    offset = config.norm_offset if config.norm_gain else 1.0
    gains = lambda norm: [leaf_at(tree, f"{norm}/scale")] if config.norm_gain else []
    layer = functools.partial(combined, stacked=True)
    turned = tree
    for segment in segments(config):
        for norm, kernels in readers(config, segment).items():
            folded = functools.partial(_folded, layer, into, gains(f"{segment.name}/{norm}"))
            for path in kernels:
                turned = replace_leaf(turned, path, folded)
        for path in writers(config, segment):
            turned = replace_leaf(turned, path, functools.partial(layer, out_of))
    if config.positions == "learned":
        turned = replace_leaf(turned, "positions/embedding", lambda w: combined(out_of, w))
    if config.tied:
        transposed = lambda w, *gain: into(w.T, *gain)
        head = combined(transposed, embed, *gains("final_norm"), shape=embed.shape[::-1])
    else:
        head = combined(into, tree["head"]["kernel"], *gains("final_norm"))
    turned = turned | {"head": tree.get("head", {}) | {"kernel": head}}
    turned = turned | {"embed": {"embedding": combined(out_of, embed)}}
    for path in (*_norms(config), final) if config.norm_gain else ():
        stacked = path != final
        one = lambda gain: np.full_like(gain, 1.0 - offset)
        turned = replace_leaf(turned, path, lambda w: combined(one, w, stacked=stacked))  # noqa: B023
    untied = dataclasses.replace(config, tied=False)
    random = basis == "random"
    change = f"rotated with seed {seed}" if random else f"rotated by {basis}, seed {seed}"
    source = f"{model.source}, {change}"
    return dataclasses.replace(model, config=untied, tensors=turned, source=source)


def _folded(layer: Callable, into: Callable, gains: list, w: Any) -> Any:
    """A kernel that reads the rotated stream, with the gain of the norm before it."""
    return layer(into, w, *gains)


def _norms(config: Any) -> list[str]:
    """The gains of the norms before the blocks of every segment."""
    return [f"{x.name}/{norm}/scale" for x in segments(config) for norm in readers(config, x)]


def _in_the_way(config: Any) -> str:
    """What of a configuration a rotation of the residual stream does not pass, in words; or ""."""
    if config.family not in ("llama", "decoder"):
        return f"is of family {config.family!r}"
    c = config
    passed = {
        "norm": c.norm == "rms",
        "norm_bias": not c.norm_bias,
        "pre_norms": c.pre_norms,
        "post_norms": not c.post_norms,
        "embed_norm": not c.embed_norm,
        "embed_width": not c.embed_width,
        "final_norm": c.final_norm,
        "recurrence": not c.recurrence,
    }
    fields = ", ".join(f"{name} = {getattr(c, name)}" for name in passed if not passed[name])
    return f"sets {fields}" if fields else ""


@takes()
def rotate_heads(model: Model, *, seed: int = 0, basis: Basis = "hadamard") -> Model:
    """The same function with the values of each head rotated by an orthogonal matrix.

    v' = v R and out' = Rᵀ out for each head, with R (head width, head width): attention averages
    values and mixes none of their channels. This spreads outlier channels of the cached values and
    of the output projection's inputs, at no cost. Lazy tensors stay lazy. For decoders, GPT-2
    and BERT.

    Reference: QuaRot (Ashkboos et al., 2024), SpinQuant's R2 (Liu et al., 2024).

    Raises:
        ValueError: there is no matrix of this basis and head width; the model is encoded; a decoder
            has values that are no heads' own, are cut, or are gated, or layers with a state.

    Example:
        >>> import jaxmem as jm
        >>> model = jm.models.rotate_heads(jm.models.load("llama-1b"))
        >>> model.source.split(", ")[-1]
        'heads rotated by hadamard'
    """
    check_dense(model)
    config = model.config
    links = [link for link in channel_links(config) if link.readers[0].endswith("attn/out/kernel")]
    if not links or getattr(config, "output_gate", False):
        raise ValueError(
            f"{model.source} has values that are cut, gated or made of latents, and no basis passes"
        )
    out_shape = leaf_at(model.tensors, links[0].readers[0]).shape  # (layers, heads * width, d)
    width = out_shape[-2] // config.heads
    turn = matrix(width, seed, basis).astype(np.float32)

    def columns(w, before):
        heads = w[..., before:]
        turned = (heads.reshape(-1, width) @ turn).reshape(heads.shape)
        return np.concatenate([w[..., :before], turned], -1)

    rows = lambda w: np.matmul(turn.T, w.reshape(-1, width, w.shape[-1])).reshape(w.shape)
    tree = model.tensors
    for link in links:
        moves = dict.fromkeys(link.writers, functools.partial(columns, before=link.before))
        for path, move in (moves | {link.readers[0]: rows}).items():
            tree = replace_leaf(tree, path, functools.partial(combined, move, stacked=True))
    source = f"{model.source}, heads rotated by {basis}"
    return dataclasses.replace(model, tensors=tree, source=source)


def matrix(n: int, seed: int, basis: Basis) -> np.ndarray:
    """The orthogonal (n, n) matrix of a basis: "random", or "hadamard" with random signs."""
    if basis == "random":
        return orthogonal(n, seed)
    if basis != "hadamard":
        raise ValueError(f'a basis is "random" or "hadamard", got {basis!r}')
    return np.random.default_rng(seed).choice([-1.0, 1.0], (n, 1)) * hadamard(n)


def orthogonal(n: int, seed: int) -> np.ndarray:
    """A uniformly random orthogonal (n, n) matrix in float64 (Mezzadri, 2007)."""
    q, r = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))
    return q * np.where(np.diag(r) < 0, -1.0, 1.0)
