"""Which tensors of a Hugging Face checkpoint make each parameter of an encoder."""

import dataclasses
from typing import Any

import numpy as np

from ..configs.segments import Segment
from .encoder_names import NAMES
from .layer_maps import Rows, linear_maps, stack_map
from .patch_weights import patch_maps
from .single_maps import single_linear, single_norm
from .tensor_layouts import Reshaped
from .wave_weights import wave_maps
from .weight_map import WeightMap

# The linear after the pooling of sentence-transformers, which has a folder of its own.
VECTOR = "2_Dense/linear"


def weights(config: Any) -> dict[str, WeightMap]:
    """The tensors of a Hugging Face checkpoint that each parameter is read from.

    Raises:
        ValueError: no family has the `tensor_names` of the configuration.

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
    inputs = _embedding if c.reads == "text" else _signals
    maps, of_layers = inputs(c, names), _layers(c, names)
    for run in runs(c):
        for path, weight_map in of_layers.items():
            if run.kind != "bare" or not path.startswith("layers/attn_norm"):
                of_run = weight_map.layers(run.start, run.length)
                maps[path.replace("layers", run.name, 1)] = _one(of_run) if c.shared else of_run
    if c.pre_norms:
        maps |= single_norm("final_norm", names["final_norm"], c.width, c.norm_bias)
    if c.head == "vector":
        return maps | _pool(c, names)
    if not c.head:
        return maps
    return {path: x.after(names["base"]) for path, x in maps.items()} | _head(c, names)


def runs(config: Any) -> list[Segment]:
    """The runs of layers with the same parameters, each of which is one scan."""
    if not config.bare_start:
        return [Segment("layers", 0, config.layers, "layer")]
    rest = Segment("layers_1", 1, config.layers - 1, "layer")
    return [Segment("layers_0", 0, 1, "bare"), rest]


def _signals(c: Any, names: dict[str, str]) -> dict[str, WeightMap]:
    """The embedding of the patches of an image or of a sound, and the norm after it."""
    maps = (
        single_norm("embed_norm", names["embed_norm"], c.width, c.norm_bias) if c.embed_norm else {}
    )
    if c.patches:
        return maps | patch_maps(c, names)
    channels = c.waves.channels[-1]
    maps |= single_norm("waves/norm", names["waves/norm"], channels, True)
    return (
        maps
        | single_linear("waves/proj", names["waves/proj"], channels, c.width)
        | wave_maps(c, names)
    )


def _embedding(c: Any, names: dict[str, str]) -> dict[str, WeightMap]:
    """The tables, the norm of their sum, and the linear after it."""
    width = c.embed_width or c.width
    tables = {"embed": (c.vocab, width)}
    if c.positions == "learned":
        tables["positions"] = (c.position_rows, width)
    if c.types:
        tables["types"] = (c.types, width)
    if c.buckets:
        tables["distances"] = (c.buckets, c.heads)
    if c.span:
        tables["distances"] = (2 * c.span, c.width)
    maps = {
        f"{path}/embedding": WeightMap((f"{names[path]}.weight",), shape)
        for path, shape in tables.items()
    }
    if c.embed_norm:
        maps |= single_norm("embed_norm", names["embed_norm"], width, c.norm_bias)
    if c.span:
        maps |= single_norm("distances_norm", names["distances_norm"], c.width, c.norm_bias)
    if c.embed_width:
        maps |= single_linear("embed_proj", names["embed_proj"], width, c.width)
    return maps


def _layers(c: Any, names: dict[str, str]) -> dict[str, WeightMap]:
    """The linears and norms of every layer."""
    maps: dict[str, WeightMap] = {}
    d, heads = c.width, c.heads * c.head_dim
    for i, part in enumerate("qkv"):
        turn = Rows(i * heads, heads) if names["attn/q"] == names["attn/k"] else np.transpose
        maps |= linear_maps(c, names, f"attn/{part}", d, heads, c.qkv_bias, turn)
    maps |= linear_maps(c, names, "attn/out", heads, d, c.out_bias)
    fused = names.get("mlp/gate") == names["mlp/up"]
    for part in ("gate",) * c.gated + ("up",):
        turn = Rows(c.ffn if part == "up" else 0, c.ffn) if fused else np.transpose
        maps |= linear_maps(c, names, f"mlp/{part}", d, c.ffn, c.mlp_bias, turn)
    maps |= linear_maps(c, names, "mlp/down", c.ffn, d, c.mlp_bias)
    for path in ("attn_scale", "mlp_scale") * c.layer_scale:
        maps[f"layers/{path}"] = stack_map(c, names, path, "", (d,))
    for path in ("attn_norm", "mlp_norm"):
        for part, tensor in {"scale": "weight", "bias": "bias"}.items():
            if part == "scale" or c.norm_bias:
                maps[f"layers/{path}/{part}"] = stack_map(c, names, path, tensor, (d,))
    return maps


def _one(weight_map: WeightMap) -> WeightMap:
    """The map of one layer, which is all of them."""
    name, shape = weight_map.names[:1], weight_map.shape[1:]
    return dataclasses.replace(weight_map, names=name, shape=shape, stacked=False)


def _head(c: Any, names: dict[str, str]) -> dict[str, WeightMap]:
    """The linears of the head, the norm between them, and a masked language model's bias."""
    masked = c.head == "masked_lm"
    width = c.embed_width if masked and c.embed_width else c.width
    maps: dict[str, WeightMap] = {}
    if c.head_activation:
        maps |= single_linear("head/dense", names[f"{c.head}/dense"], c.width, width, c.head_bias)
    if masked or c.head_norm:
        maps |= single_norm("head/norm", names[f"{c.head}/norm"], width, c.norm_bias)
    if masked:
        return maps | {"head/bias": WeightMap((names["masked_lm/bias"],), (c.vocab,))}
    labels = 2 if c.head == "span" else c.labels
    return maps | single_linear(
        "head/out", names[f"{c.head}/out"], (1 + c.head_both) * c.width, labels
    )


def _pool(c: Any, names: dict[str, str]) -> dict[str, WeightMap]:
    """The parameters of the pooling, and of the linear after it."""
    maps = _attention_pool(c, names) if c.pool == "attention" else {}
    if not c.vector_width:
        return maps
    return maps | single_linear("pool/dense", VECTOR, c.width, c.vector_width, c.vector_bias)


def _attention_pool(c: Any, names: dict[str, str]) -> dict[str, WeightMap]:
    """The query of attention pooling, its linears, its norm and its MLP."""
    d, qkv = c.width, names["pool/qkv"]
    maps = {"pool/probe": WeightMap((names["pool/probe"],), (d,), Reshaped((1, 1, d), (d,)))}
    for i, part in enumerate("qkv"):
        rows = Rows(i * d, d)
        maps[f"pool/{part}/kernel"] = WeightMap((f"{qkv}_weight",), (d, d), rows)
        maps[f"pool/{part}/bias"] = WeightMap((f"{qkv}_bias",), (d,), rows)
    sizes = {"pool/out": (d, d), "pool/mlp/up": (d, c.ffn), "pool/mlp/down": (c.ffn, d)}
    for path, size in sizes.items():
        maps |= single_linear(path, names[path], *size)
    return maps | single_norm("pool/norm", names["pool/norm"], d, True)
