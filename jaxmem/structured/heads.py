"""remove_heads: fewer attention heads, whose `out` makes up for what is gone."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from ..models.model import Model
from .removing import gram_of, remove_each

OUT = "layers/attn/out/kernel"


def remove_heads(
    model: Model, stats: Mapping, *, heads: int | None = None, kv_heads: int | None = None
) -> Model:
    """The model of the Llama family with `heads` query heads, or with `kv_heads` groups, a layer.

    With grouped queries a key-value head serves several query heads. `heads` takes the same number
    of query heads from each group, and leaves keys and values alone; `kv_heads` takes whole groups,
    queries, keys and values. Each layer loses those whose loss is least once `out` is refitted.
    Ainslie et al., 2023 (groups); Kurtic et al., 2023 (ZipLM).

    Raises:
        ValueError: not of the Llama family; not one of the two numbers, or one that leaves no head,
            all of them, or groups of different size; stats without Gram matrices.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmem as jm
        >>> from jaxmem.models import llama
        >>> sizes = dict(vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8)
        >>> config, ids = llama.Config(**sizes), jnp.arange(60).reshape(2, 30)
        >>> params = llama.module(config).init(jax.random.key(0), ids)["params"]
        >>> model = jm.models.Model(config, params, None, "random")
        >>> fed = jm.stats(model.apply, params, [(ids,)])
        >>> one, other = remove_heads(model, fed, heads=2), remove_heads(model, fed, kv_heads=1)
        >>> [(m.config.heads, m.config.kv_heads) for m in (one, other)]
        [(2, 2), (2, 1)]
        >>> one.apply(one.params, ids).shape, other.params["layers"]["attn"]["k"]["kernel"].shape
        ((2, 30, 64), (2, 32, 8))
    """
    config = model.config
    if config.family != "llama":
        raise ValueError(f"heads are removed from the llama family, got {config.family}")
    if (heads is None) == (kv_heads is None):
        raise ValueError(f"give heads or kv_heads, got heads={heads} and kv_heads={kv_heads}")
    per_group = config.heads // config.kv_heads
    if kv_heads is not None:
        if not 0 < kv_heads < config.kv_heads:
            raise ValueError(f"{kv_heads} of {config.kv_heads} groups, expected fewer and some")
        groups, drop = (0,) * config.kv_heads, config.kv_heads - kv_heads
        new = dict(heads=kv_heads * per_group, kv_heads=kv_heads)
    else:
        if heads % config.kv_heads or not 0 < heads < config.heads:
            raise ValueError(
                f"{heads} heads, expected a multiple of {config.kv_heads} groups below "
                f"{config.heads}"
            )
        groups = tuple(i // per_group for i in range(config.heads))
        drop = per_group - heads // config.kv_heads
        new = dict(heads=heads)
    params = jax.tree.map(lambda x: x, model.params)  # new dicts, the same arrays
    attn = params["layers"]["attn"]
    stay, out = remove_each(attn["out"]["kernel"], gram_of(stats, OUT), groups, drop)
    for name in ("q", "k", "v") if kv_heads is not None else ("q",):
        attn[name] = {part: _taken(w, stay, len(groups)) for part, w in attn[name].items()}
    attn["out"] = {**attn["out"], "kernel": out}
    source = f"{model.source}, {new} of {config.heads} heads in {config.kv_heads} groups"
    return Model(dataclasses.replace(config, **new), params, model.tokenizer, source)


def _taken(w, stay, runs):
    """The runs `stay` (layers, kept) of the last axis of w (layers, ..., runs · size)."""
    cut = w.reshape(*w.shape[:-1], runs, -1)
    index = stay.reshape(len(w), *(1,) * (w.ndim - 2), -1, 1)
    return jnp.take_along_axis(cut, index, -2).reshape(*w.shape[:-1], -1)
