"""Which tensors of a Hugging Face checkpoint make each parameter of an encoder."""

from typing import Any

import numpy as np

from .encoder_names import NAMES
from .layer_maps import linear_maps
from .weight_map import WeightMap, stacked_layer_norms


def weights(config: Any) -> dict[str, WeightMap]:
    """The tensors of a Hugging Face checkpoint that each parameter is read from.

    Example:
        >>> from jaxmem.architectures import encoder
        >>> config = encoder.Config(vocab=64, width=32, ffn=48, layers=1, heads=4)
        >>> encoder.weights(config)["layers/mlp/up/kernel"].names
        ('encoder.layer.0.intermediate.dense.weight',)
    """
    if config.tensor_names not in NAMES:
        known = ", ".join(NAMES)
        raise ValueError(f"tensor_names is {config.tensor_names!r}, expected one of {known}")
    c, names = config, NAMES[config.tensor_names]
    maps = _embedding(c, names)
    d, heads = c.width, c.heads * c.head_dim
    for part in "qkv":
        maps |= linear_maps(c, names, f"attn/{part}", d, heads, c.qkv_bias)
    maps |= linear_maps(c, names, "attn/out", heads, d, True)
    for part in ("gate",) * c.gated + ("up",):
        maps |= linear_maps(c, names, f"mlp/{part}", d, c.ffn, c.mlp_bias)
    maps |= linear_maps(c, names, "mlp/down", c.ffn, d, c.mlp_bias)
    norms = {path: names[path] for path in ("attn_norm", "mlp_norm")}
    prefixes = [names["layer"].format(i) for i in range(c.layers)]
    return maps | stacked_layer_norms(norms, prefixes, d) | (_head(c, names) if c.head else {})


def _embedding(c: Any, names: dict[str, str]) -> dict[str, WeightMap]:
    """The tables, the norm of their sum, and the linear after it."""
    width = c.embed_width or c.width
    tables = {"embed": c.vocab, "positions": c.position_rows} | (
        {"types": c.types} if c.types else {}
    )
    maps = {
        f"{path}/embedding": WeightMap((f"{names[path]}.weight",), (rows, width))
        for path, rows in tables.items()
    }
    maps |= _norm("embed_norm", names["embed_norm"], width)
    return maps | (
        _linear("embed_proj", names["embed_proj"], width, c.width) if c.embed_width else {}
    )


def _head(c: Any, names: dict[str, str]) -> dict[str, WeightMap]:
    """The linears of the head, and of a masked language model the norm and the bias."""
    masked = c.head == "masked_lm"
    maps: dict[str, WeightMap] = {}
    if c.head_activation:
        width = c.embed_width if masked and c.embed_width else c.width
        maps |= _linear("head/dense", names[f"{c.head}/dense"], c.width, width)
    if not masked:
        labels = 2 if c.head == "span" else c.labels
        return maps | _linear("head/out", names[f"{c.head}/out"], c.width, labels)
    maps |= _norm("head/norm", names["masked_lm/norm"], c.embed_width or c.width)
    return maps | {"head/bias": WeightMap((names["masked_lm/bias"],), (c.vocab,))}


def _linear(path: str, name: str, inputs: int, outputs: int) -> dict[str, WeightMap]:
    """The kernel and bias of one linear."""
    return {
        f"{path}/kernel": WeightMap((f"{name}.weight",), (inputs, outputs), np.transpose),
        f"{path}/bias": WeightMap((f"{name}.bias",), (outputs,)),
    }


def _norm(path: str, name: str, width: int) -> dict[str, WeightMap]:
    """The scale and bias of one layer norm."""
    parts = {"scale": "weight", "bias": "bias"}
    return {f"{path}/{x}": WeightMap((f"{name}.{y}",), (width,)) for x, y in parts.items()}
