"""remove_neurons: narrower feed-forward layers; their `down` projection is refitted."""

from collections.abc import Mapping

from ..core.arguments import takes
from ..models.model import Model
from .input_removal import moments_of, remove_inputs, take_runs
from .smaller_model import check_layers, copy_dicts, smaller_model

DOWN = "layers/mlp/down/kernel"


@takes()
def remove_neurons(model: Model, ffn: int, stats: Mapping) -> Model:
    """The model with `ffn` neurons in the feed-forward part of each layer.

    Each layer loses the neurons whose removal costs least after `down` is refitted; the others keep
    their order. For every family. Kurtic et al., 2023 (ZipLM).

    Raises:
        ValueError: `ffn` is less than 1 or not below the model's; `stats` has no Gram matrices; the
            model has experts.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmem as jm
        >>> from jaxmem.architectures import llama
        >>> sizes = dict(vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8)
        >>> config, ids = llama.Config(**sizes), jnp.arange(60).reshape(2, 30)
        >>> shapes = jax.eval_shape(llama.module(config).init, jax.random.key(0), ids)["params"]
        >>> params = jax.tree.map(lambda s: jnp.full(s.shape, 0.1), shapes)
        >>> model = jm.models.Model(config, params, None, "blank")
        >>> smaller = remove_neurons(model, 36, jm.stats(model.apply, params, [(ids,)]))
        >>> smaller.params["layers"]["mlp"]["up"]["kernel"].shape, smaller.config.ffn
        ((2, 32, 36), 36)
        >>> jax.eval_shape(smaller.apply, smaller.params, ids).shape
        (2, 30, 64)
    """
    check_layers(model)
    now = model.config.ffn
    if not 0 < ffn < now:
        raise ValueError(f"{ffn} neurons are to stay of {now}, expected at least 1 and fewer")
    params = copy_dicts(model.params)
    mlp = params["layers"]["mlp"]
    stay, mlp["down"] = remove_inputs(mlp["down"], moments_of(stats, DOWN), (0,) * now, now - ffn)
    for name in set(mlp) - {"down"}:
        mlp[name] = {part: take_runs(w, stay, now) for part, w in mlp[name].items()}
    return smaller_model(model, params, f"{ffn} of {now} neurons", ffn=ffn)
