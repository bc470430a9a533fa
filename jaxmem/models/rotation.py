"""rotate: q' = Qᵀ diag(g) q, out' = out Q, embed' = embed Q: the same function in another basis."""

import dataclasses
import functools
from typing import Literal

import jax
import numpy as np

from ..core.hadamard import hadamard
from ..core.lazy import combined, is_lazy
from ..core.leaf import is_encoded
from .model import Model
from .rescaling import check_dense, find, joints, replaced

_READS = {"attn": ("q", "k", "v"), "mlp": ("gate", "up")}  # what follows the norm before each
_WRITES = {"attn": "out", "mlp": "down"}

Basis = Literal["random", "hadamard"]


def rotate(model: Model, *, seed: int = 0, basis: Basis = "random") -> Model:
    """The same function with its residual stream turned by a random orthogonal matrix.

    Norm gains are folded into the matrices that follow, and the head is untied, since the last
    norm's gain belongs to it and not to the embedding: `head/kernel` adds vocab × width weights.
    The weights of a checkpoint that was once quantised leave its grid this way, so that
    quantising them again is a fair test; a random basis also spreads outliers. Prune before it,
    not after: zeros do not survive. Logits stay within 1e-4 in float32.

    Tensors that were lazy stay so: a layer is turned when it is read. The matrix is the Q of a
    standard normal one, with the signs that make it uniform, and depends on `seed` alone.

    Reference: SliceGPT (Ashkboos et al., 2024), QuaRot (Ashkboos et al., 2024).

    Raises:
        ValueError: A basis or width without a matrix; not of the Llama family, or with norms after
            its blocks (Gemma), which a rotation does not pass through; or encoded already.

    Example:
        >>> import jaxmem as jm
        >>> model = jm.models.rotate(jm.models.load("llama-1b"))
        >>> model.config.tied, model.params["head"]["kernel"].shape
        (False, (2048, 128256))
    """
    config = model.config
    if config.family != "llama" or config.post_norms or config.norm_offset:
        raise ValueError(f"{model.source} cannot be rotated: expected a Llama without post-norms")
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
    how = f"rotated with seed {seed}" if basis == "random" else f"rotated by {basis}, seed {seed}"
    return Model(untied, tree, model.tokenizer, f"{model.source}, {how}")


def rotate_heads(model: Model, *, seed: int = 0, basis: Basis = "hadamard") -> Model:
    """The same function with each head's values turned by an orthogonal matrix.

    v' = v R and out' = Rᵀ out for each head, R (head width, head width): attention weighs values
    and mixes none of their channels, and heads that share a value share R. Spreads channels that
    stand out over what `out` reads and over cached values, at no cost. What was lazy stays so. Of
    the Llama family, GPT-2 or BERT.

    Reference: QuaRot (Ashkboos et al., 2024), SpinQuant's R2 (Liu et al., 2024).

    Raises:
        ValueError: a basis or head width without a matrix; an encoded model.

    Example:
        >>> import jaxmem as jm
        >>> model = jm.models.rotate_heads(jm.models.load("llama-1b"))
        >>> model.source.split(", ")[-1]
        'heads rotated by hadamard'
    """
    check_dense(model)
    out = "layers/attn/out/kernel"
    [joint] = [joint for joint in joints(model.config) if joint.readers == (out,)]
    shape = find(model.tensors, out).shape  # (layers, heads · head width, width)
    width = shape[-2] // model.config.heads
    turn = matrix(width, seed, basis).astype(np.float32)

    def columns(w):
        heads = w[..., joint.before :]
        turned = (heads.reshape(-1, width) @ turn).reshape(heads.shape)
        return np.concatenate([w[..., : joint.before], turned], -1)

    rows = lambda w: np.matmul(turn.T, w.reshape(-1, width, shape[-1])).reshape(w.shape)
    tree = model.tensors
    for path in (*joint.writers, out):
        move = rows if path == out else columns
        tree = replaced(tree, path, lambda w: combined(move, w, stacked=True))  # noqa: B023
    return Model(model.config, tree, model.tokenizer, f"{model.source}, heads rotated by {basis}")


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
