"""rotate: q' = Qᵀ diag(g) q, out' = out Q, embed' = embed Q: the same function in another basis."""

import dataclasses
import functools
from typing import Any, Literal

import jax
import numpy as np

from ..architectures.configs.decoder_config import beyond_llama
from ..core.arguments import takes
from ..core.hadamard import hadamard
from ..core.lazy import combined, is_lazy
from ..core.leaf import is_encoded
from .model import Model
from .rescaling import channel_links, check_dense, leaf_at, replace_leaf

_READS = {"attn": ("q", "k", "v"), "mlp": ("gate", "up")}  # the projections after each norm
_WRITES = {"attn": "out", "mlp": "down"}

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
        ValueError: there is no matrix of this basis and width; the model is not of the Llama
            family (the message names the mechanisms that are in the way), has norms after its
            blocks (Gemma), or is encoded.

    Example:
        >>> import jaxmem as jm
        >>> model = jm.models.rotate(jm.models.load("llama-1b"))
        >>> model.config.tied, model.params["head"]["kernel"].shape
        (False, (2048, 128256))
    """
    config = model.config
    if config.family != "llama" or config.post_norms or config.norm_offset:
        raise ValueError(
            f"{model.source} cannot be rotated: {_unlike(config)}; "
            "expected a Llama without post-norms"
        )
    leaf = lambda x: is_lazy(x) or is_encoded(x)
    if any(map(is_encoded, jax.tree.leaves(model.tensors, is_leaf=leaf))):
        raise ValueError(f"{model.source} is encoded; rotate the dense model and encode that")
    tree = jax.tree.map(lambda x: x, model.tensors, is_leaf=leaf)  # new dicts, the same leaves
    blocks, embed, final = tree["layers"], tree["embed"]["embedding"], tree["final_norm"]["scale"]
    abstract = isinstance(embed, jax.ShapeDtypeStruct)
    turn = None if abstract else matrix(config.width, seed, basis).astype(np.float32)

    into = lambda w, gain: (turn.T * gain) @ w
    out_of = lambda w: w @ turn
    layer = functools.partial(combined, stacked=True)
    for part, names in _READS.items():
        inside, gain = blocks[part], blocks[f"{part}_norm"]["scale"]
        for name in names:
            inside[name]["kernel"] = layer(into, inside[name]["kernel"], gain)
        last = inside[_WRITES[part]]
        last["kernel"] = layer(out_of, last["kernel"])
        blocks[f"{part}_norm"]["scale"] = layer(np.ones_like, gain)
    if config.tied:
        head = combined(lambda w, gain: into(w.T, gain), embed, final, shape=embed.shape[::-1])
    else:
        head = combined(into, tree["head"]["kernel"], final)
    tree["head"] = {"kernel": head}
    tree["embed"] = {"embedding": combined(out_of, embed)}
    tree["final_norm"] = {"scale": combined(np.ones_like, final)}
    untied = dataclasses.replace(config, tied=False)
    random = basis == "random"
    change = f"rotated with seed {seed}" if random else f"rotated by {basis}, seed {seed}"
    source = f"{model.source}, {change}"
    return dataclasses.replace(model, config=untied, tensors=tree, source=source)


def _unlike(config: Any) -> str:
    """What of a configuration the rotation of a residual stream does not pass, in words."""
    if config.family == "llama":
        return "it has norms after its blocks, or gains with an offset"
    if config.family == "decoder":
        return f"its configuration sets {', '.join(beyond_llama(config))}"
    return f"it is of family {config.family!r}"


@takes()
def rotate_heads(model: Model, *, seed: int = 0, basis: Basis = "hadamard") -> Model:
    """The same function with the values of each head rotated by an orthogonal matrix.

    v' = v R and out' = Rᵀ out for each head, with R (head width, head width): attention averages
    values and mixes none of their channels. This spreads outlier channels of the cached values and
    of the output projection's inputs, at no cost. Lazy tensors stay lazy. For the Llama family,
    GPT-2 and BERT.

    Reference: QuaRot (Ashkboos et al., 2024), SpinQuant's R2 (Liu et al., 2024).

    Raises:
        ValueError: there is no matrix of this basis and head width; the model is encoded.

    Example:
        >>> import jaxmem as jm
        >>> model = jm.models.rotate_heads(jm.models.load("llama-1b"))
        >>> model.source.split(", ")[-1]
        'heads rotated by hadamard'
    """
    check_dense(model)
    out = "layers/attn/out/kernel"
    [link] = [link for link in channel_links(model.config) if link.readers == (out,)]
    shape = leaf_at(model.tensors, out).shape  # (layers, heads · head width, width)
    width = shape[-2] // model.config.heads
    turn = matrix(width, seed, basis).astype(np.float32)

    def columns(w):
        heads = w[..., link.before :]
        turned = (heads.reshape(-1, width) @ turn).reshape(heads.shape)
        return np.concatenate([w[..., : link.before], turned], -1)

    rows = lambda w: np.matmul(turn.T, w.reshape(-1, width, shape[-1])).reshape(w.shape)
    tree = model.tensors
    for path in (*link.writers, out):
        move = rows if path == out else columns
        tree = replace_leaf(tree, path, lambda w: combined(move, w, stacked=True))  # noqa: B023
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
