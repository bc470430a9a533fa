"""Counts that estimates are made of: the weights that a token meets, the numbers of a layer."""

import math
import re
from typing import Any

import jax

from ..architectures.configs.decoder_config import Config
from ..core.paths import is_whole, paths

OF_LAYERS = re.compile(r"layers(_\d+)?/")


def split_experts(params: Any) -> tuple[list, list]:
    """(the leaves outside experts, the stacks of experts) of params, dense or encoded.

    Example:
        >>> split_experts({"layers": {"mlp": {"experts": {"up": {"kernel": 1}}, "router": 2}}})
        ([2], [1])
    """
    leaves = zip(paths(params), jax.tree.leaves(params, is_leaf=is_whole))
    split: tuple[list, list] = ([], [])
    for path, leaf in leaves:
        split["/experts/" in path].append(leaf)
    return split


def token_weights(config: Config, params: Any) -> tuple[float, float]:
    """(weights of all layers that every token is multiplied by, those of a token's experts).

    Example:
        >>> import jaxmem as jm
        >>> model = jm.models.load("llama-8b")
        >>> token_weights(model.config, model.params)
        (6979321856, 0.0)
    """
    leaves = jax.tree.leaves(params, is_leaf=is_whole)
    stacks = {
        path: math.prod(leaf.shape)
        for path, leaf in zip(paths(params), leaves)
        if OF_LAYERS.match(path) and len(leaf.shape) >= 3
    }
    of_experts = sum(size for path, size in stacks.items() if "/experts/" in path)
    mixture = getattr(config, "mixture", None)
    share = mixture.per_token / mixture.experts if mixture else 0.0
    return sum(stacks.values()) - of_experts, share * of_experts


def attended_numbers(config: Config) -> int:
    """Numbers of keys and values of all heads that a query is multiplied by, for each token.

    They are the mean over layers, of which some may have no attention.
    """
    latent = getattr(config, "latent", None)
    if latent:
        return config.heads * (2 * latent.kv_rank + latent.rope_dim)
    return int(2 * config.heads * config.head_dim * attention_share(config))


def attention_share(config: Config) -> float:
    """The share of layers that have attention.

    Example:
        >>> import jaxmem as jm
        >>> attention_share(jm.models.load("llama-8b").config)
        1.0
    """
    recurrence = getattr(config, "recurrence", None)
    if recurrence is None or recurrence.beside:
        return 1.0
    return 1.0 - recurrence.count(config.layers) / config.layers


def product_numbers(config: Config) -> float:
    """Results of a layer's products for one token, in the mean over layers.

    They are divided over `tensor`. Those of experts and of recurrent layers are not counted.
    """
    if getattr(config, "recurrence", None):
        return 0.0
    c, latent, mixture = config, getattr(config, "latent", None), getattr(config, "mixture", None)
    kv = 2 * getattr(c, "kv_heads", c.heads) * c.head_dim
    attention = c.heads * c.head_dim + (latent.kv_rank + latent.rope_dim if latent else kv)
    dense = (1 + getattr(c, "gated", False)) * c.ffn
    if not mixture:
        return attention + dense
    dense_layers = sum(mixture.dense) / c.layers
    return attention + dense * dense_layers + 2 * mixture.shared_ffn * (1 - dense_layers)
