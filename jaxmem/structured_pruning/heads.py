"""remove_heads: fewer attention heads, whose `out` makes up for what is gone."""

import dataclasses
from collections.abc import Mapping

import jax

from ..models.model import Model
from .input_removal import moments_of, remove_inputs, take_runs

OUT = "layers/attn/out/kernel"


def remove_heads(
    model: Model, stats: Mapping, *, heads: int | None = None, kv_heads: int | None = None
) -> Model:
    """The model with `heads` query heads a layer, or with `kv_heads` groups.

    With grouped queries a key-value head serves several query heads. `heads` takes the same number
    of query heads from each group, and leaves keys and values alone; `kv_heads` takes whole groups,
    queries, keys and values. Where each query head has keys of its own, as in GPT-2 and BERT, both
    are the same. Each layer loses those whose loss is least once `out` is refitted. Ainslie et
    al., 2023 (groups); Kurtic et al., 2023 (ZipLM).

    Raises:
        ValueError: not one of the two numbers, or one that leaves no head, all of them, or groups
            of different size; stats without Gram matrices.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmem as jm
        >>> from jaxmem.architectures import llama
        >>> sizes = dict(vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8)
        >>> config, ids = llama.Config(**sizes), jnp.arange(60).reshape(2, 30)
        >>> shapes = jax.eval_shape(llama.module(config).init, jax.random.key(0), ids)["params"]
        >>> params = jax.tree.map(lambda s: jnp.full(s.shape, 0.1), shapes)
        >>> model = jm.models.Model(config, params, None, "blank")
        >>> fed = jm.stats(model.apply, params, [(ids,)])
        >>> one, other = remove_heads(model, fed, heads=2), remove_heads(model, fed, kv_heads=1)
        >>> [(m.config.heads, m.config.kv_heads) for m in (one, other)]
        [(2, 2), (2, 1)]
        >>> jax.eval_shape(one.apply, one.params, ids).shape
        (2, 30, 64)
        >>> other.params["layers"]["attn"]["k"]["kernel"].shape
        (2, 32, 8)
    """
    config = model.config
    if (heads is None) == (kv_heads is None):
        raise ValueError(f"give heads or kv_heads, got heads={heads} and kv_heads={kv_heads}")
    sets = getattr(config, "kv_heads", config.heads)
    each = config.heads // sets
    if each == 1:
        kv_heads, heads = heads or kv_heads or 0, None
    if kv_heads is not None:
        if not 0 < kv_heads < sets:
            raise ValueError(f"{kv_heads} of {sets} groups, expected fewer and some")
        groups, drop = (0,) * sets, sets - kv_heads
        new = dict(heads=kv_heads * each, kv_heads=kv_heads)
    else:
        if heads % sets or not 0 < heads < config.heads:
            raise ValueError(
                f"{heads} heads, expected a multiple of {sets} groups below {config.heads}"
            )
        groups, drop = tuple(i // each for i in range(config.heads)), each - heads // sets
        new = dict(heads=heads)
    if not hasattr(config, "kv_heads"):
        new.pop("kv_heads")
    params = jax.tree.map(lambda x: x, model.params)  # new dicts, the same arrays
    attn = params["layers"]["attn"]
    stay, attn["out"] = remove_inputs(attn["out"], moments_of(stats, OUT), groups, drop)
    for name in {"q", "k", "v", "qkv"} & set(attn):
        if heads is None or name == "q":
            attn[name] = {part: _taken(w, stay, groups, name) for part, w in attn[name].items()}
    how = " in whole groups" if kv_heads and each > 1 else ""
    source = f"{model.source}, {new['heads']} of {config.heads} heads{how}"
    return Model(dataclasses.replace(config, **new), params, model.tokenizer, source)


def _taken(w, stay, groups, name):
    """What a projection makes for the groups that stay; `qkv` makes queries, keys and values."""
    parts = w.reshape(*w.shape[:-1], len(name), -1)  # (layers, ..., 1 or 3, size)
    return take_runs(parts, stay, len(groups)).reshape(*w.shape[:-1], -1)
