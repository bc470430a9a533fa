"""remove_heads: fewer attention heads; the output projection is refitted."""

from collections.abc import Mapping

from ..core.arguments import takes
from ..models.model import Model
from .input_removal import moments_of, remove_inputs, take_runs
from .smaller_model import check_layers, copy_dicts, smaller_model

OUT = "layers/attn/out/kernel"


@takes()
def remove_heads(
    model: Model, stats: Mapping, *, heads: int | None = None, kv_heads: int | None = None
) -> Model:
    """The model with `heads` query heads in each layer, or with `kv_heads` key-value heads.

    With grouped queries, several query heads share one key-value head: a group. `heads` removes
    equally many query heads from each group and no keys and values; `kv_heads` removes whole
    groups, with their queries, keys and values. In GPT-2 and BERT, whose groups have one query
    head, both do the same. Each layer loses the heads whose removal costs least after the output
    projection is refitted. Ainslie et al., 2023 (groups); Kurtic et al., 2023 (ZipLM).

    Raises:
        ValueError: both numbers or none are given; a number leaves no head, all heads, or groups of
            different size; `stats` has no Gram matrices; heads have ALiBi slopes or norms over
            several heads; the model has experts or multi-latent attention.

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
    check_layers(model)
    _check_heads_are_alike(model)
    sets = getattr(config, "kv_heads", config.heads)
    per_group = config.heads // sets
    if per_group == 1:
        kv_heads, heads = heads or kv_heads or 0, None
    if kv_heads is not None:
        if not 0 < kv_heads < sets:
            raise ValueError(f"{kv_heads} of {sets} groups, expected fewer and some")
        groups, drop = (0,) * sets, sets - kv_heads
        sizes = dict(heads=kv_heads * per_group, kv_heads=kv_heads)
    else:
        if heads % sets or not 0 < heads < config.heads:
            raise ValueError(
                f"{heads} heads, expected a multiple of {sets} groups below {config.heads}"
            )
        groups, drop = tuple(i // per_group for i in range(config.heads)), per_group - heads // sets
        sizes = dict(heads=heads)
    if not hasattr(config, "kv_heads"):
        sizes.pop("kv_heads")
    params = copy_dicts(model.params)
    attn = params["layers"]["attn"]
    stay, attn["out"] = remove_inputs(attn["out"], moments_of(stats, OUT), groups, drop)
    for name in {"q", "k", "v", "qkv"} & set(attn):
        if heads is None or name == "q":
            attn[name] = {
                part: _take_groups(w, stay, groups, name) for part, w in attn[name].items()
            }
    whole = " in whole groups" if kv_heads and per_group > 1 else ""
    change = f"{sizes['heads']} of {config.heads} heads{whole}"
    return smaller_model(model, params, change, **sizes)


def _check_heads_are_alike(model):
    """Refuses a decoder whose heads differ in more than their projections."""
    norm = getattr(model.config, "qk_norm", False) and model.config.qk_norm_over
    slopes = getattr(model.config, "positions", "") == "alibi"
    if norm in ("heads", "all") or slopes:
        what = "ALiBi slopes" if slopes else "norms over heads"
        raise ValueError(f"{model.source} has {what}, which change when heads go; remove neurons")


def _take_groups(w, stay, groups, name):
    """The outputs of a projection for the groups `stay`; `qkv` has queries, keys and values."""
    parts = w.reshape(*w.shape[:-1], len(name), -1)  # (layers, ..., 1 or 3, size)
    return take_runs(parts, stay, len(groups)).reshape(*w.shape[:-1], -1)
