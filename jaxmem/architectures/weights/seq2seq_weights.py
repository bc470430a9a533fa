"""Which tensors of a Hugging Face checkpoint make each parameter of an encoder-decoder."""

from typing import Any

from ..layers.sound_embedding import WINDOW
from .layer_maps import linear_maps, norm_maps, norm_parts
from .single_maps import single_convolution, single_linear
from .tensor_layouts import Reshaped
from .weight_map import WeightMap

_T5_LAYER = {
    **{f"attn/{x}": f"layer.0.SelfAttention.{x[0]}" for x in ("q", "k", "v", "out")},
    "attn_norm": "layer.0.layer_norm",
    **{f"cross/{x}": f"layer.1.EncDecAttention.{x[0]}" for x in ("q", "k", "v", "out")},
    "cross_norm": "layer.1.layer_norm",
}
_T5 = {
    "base": "",
    "layer": "{stack}.block.{{}}.",
    "final_norm": "{stack}.final_layer_norm",
    "distances": "{stack}.block.0.layer.0.SelfAttention.relative_attention_bias",
    "embed": "shared",
}
_BART = {
    "base": "model.",
    "layer": "{stack}.layers.{{}}.",
    "positions": "{stack}.embed_positions",
    "embed_norm": "{stack}.layernorm_embedding",
    "final_norm": "{stack}.layer_norm",
    "embed": "shared",
    **{f"attn/{x}": f"self_attn.{x}_proj" for x in ("q", "k", "v", "out")},
    **{f"cross/{x}": f"encoder_attn.{x}_proj" for x in ("q", "k", "v", "out")},
    **{"attn_norm": "self_attn_layer_norm", "cross_norm": "encoder_attn_layer_norm"},
    **{"mlp/up": "fc1", "mlp/down": "fc2", "mlp_norm": "final_layer_norm"},
}
# {Config.tensor_names: {path of a module: its name in the checkpoint}}; `{stack}` is "encoder" or
# "decoder", `{last}` the number of the MLP's part in a layer of the stack. `base` comes before all
# names but those of a head.
NAMES = {
    "bart": _BART,
    "t5": _T5
    | _T5_LAYER
    | {f"mlp/{x}": f"layer.{{last}}.DenseReluDense.{y}" for x, y in (("up", "wi"), ("down", "wo"))}
    | {"mlp_norm": "layer.{last}.layer_norm"},
}
NAMES["whisper"] = _BART | {"embed": "decoder.embed_tokens", "head": "proj_out"}
NAMES["t5_gated"] = NAMES["t5"] | {
    f"mlp/{x}": f"layer.{{last}}.DenseReluDense.wi_{i}" for i, x in enumerate(("gate", "up"))
}


def weights(config: Any) -> dict[str, WeightMap]:
    """The tensors of a Hugging Face checkpoint that each parameter is read from.

    Raises:
        ValueError: no family has the `tensor_names` of the configuration.

    Example:
        >>> from jaxmem.architectures import seq2seq
        >>> sizes = dict(vocab=64, width=32, ffn=48, layers=1, heads=4)
        >>> seq2seq.weights(seq2seq.Config(**sizes))["decoder/layers/cross/q/kernel"].names
        ('model.decoder.layers.0.encoder_attn.q_proj.weight',)
    """
    c = config
    if c.tensor_names not in NAMES:
        known = ", ".join(NAMES)
        raise ValueError(f"tensor_names is {c.tensor_names!r}, expected one of {known}")
    names = NAMES[c.tensor_names]
    maps = {"embed/embedding": WeightMap((f"{names['embed']}.weight",), (c.vocab, c.width))}
    for i, inputs in enumerate((c.mels, c.width) if c.mels else ()):
        shape = (WINDOW, inputs, c.width)
        maps |= single_convolution(f"sound/conv_{i}", f"encoder.conv{i + 1}", shape)
    maps |= _stack(c.of_encoder(), names, "encoder") | _stack(c, names, "decoder")
    maps = {path: weight_map.after(names["base"]) for path, weight_map in maps.items()}
    if not c.tied:
        maps |= single_linear("head", names.get("head", "lm_head"), c.width, c.vocab, bias=False)
    if c.logit_bias:
        shape = (c.vocab,)
        maps["logit_bias"] = WeightMap(("final_logits_bias",), shape, Reshaped((1, *shape), shape))
    return maps


def _stack(c: Any, names: dict[str, str], stack: str) -> dict[str, WeightMap]:
    """The parameters of the encoder or of the decoder."""
    last = 2 if stack == "decoder" else 1
    names = {path: name.format(stack=stack, last=last) for path, name in names.items()}
    maps: dict[str, WeightMap] = {}
    if c.positions == "learned":
        shape = (c.context + c.position_offset, c.width)
        maps["positions/embedding"] = WeightMap((f"{names['positions']}.weight",), shape)
    if c.positions == "relative":
        table = (f"{names['distances']}.weight",)
        maps["distances/embedding"] = WeightMap(table, (c.buckets, c.heads))
    for path in ("embed_norm",) * c.embed_norm + ("final_norm",) * c.final_norm:
        for part, tensor in norm_parts(c, c.norm_bias):
            maps[f"{path}/{part}"] = WeightMap((f"{names[path]}.{tensor}",), (c.width,))
    maps |= _attention(c, names, "attn") | _feed_forward(c, names)
    if stack == "decoder":
        maps |= _attention(c, names, "cross")
    return {f"{stack}/{path}": weight_map for path, weight_map in maps.items()}


def _attention(c: Any, names: dict[str, str], part: str) -> dict[str, WeightMap]:
    """The projections and the norm of "attn", or of "cross"."""
    size = c.heads * c.head_dim
    maps = linear_maps(c, names, f"{part}/out", size, c.width, c.out_bias)
    for name in "qkv":
        bias = c.qkv_bias and (name != "k" or c.key_bias)
        maps |= linear_maps(c, names, f"{part}/{name}", c.width, size, bias)
    return maps | norm_maps(c, names, f"{part}_norm", (c.width,), c.norm_bias)


def _feed_forward(c: Any, names: dict[str, str]) -> dict[str, WeightMap]:
    """The matrices and the norm of the MLP."""
    maps = linear_maps(c, names, "mlp/down", c.ffn, c.width, c.mlp_bias)
    for part in ("gate",) * c.gated + ("up",):
        maps |= linear_maps(c, names, f"mlp/{part}", c.width, c.ffn, c.mlp_bias)
    return maps | norm_maps(c, names, "mlp_norm", (c.width,), c.norm_bias)
