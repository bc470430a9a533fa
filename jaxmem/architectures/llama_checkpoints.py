"""Hugging Face names of a Llama: fields of `config.json`, and tensors of a checkpoint."""

from typing import Any

import numpy as np

from ..io.json_fields import JsonFields
from .config_sizes import MOST_LAYERS, refuse_unread_options
from .weight_map import WeightMap, same

_FULL, _LOCAL = "full_attention", "sliding_attention"

_GEMMA = {
    "vocab_size": 262_208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "tie_word_embeddings": True,
    "rope_theta": 1e6,
    "query_pre_attn_scalar": 256,
    "max_position_embeddings": 131_072,
    "sliding_window": 4096,
    "hidden_activation": "gelu_pytorch_tanh",
    "bos_token_id": 2,
    "eos_token_id": 1,
}  # transformers' defaults, which the published configs of Gemma 3 leave out
_SLIDING = {"sliding_window": 4096}
_DEFAULTS = {
    "mistral": _SLIDING,
    "qwen2": _SLIDING,
    "qwen3": _SLIDING | {"head_dim": 128},
    "gemma3_text": _GEMMA,
}
_TYPES = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text")
_ROPE_FIELDS = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
    "longrope": (),
}
_OTHER_PARTS = "|".join(  # beside the text part of a multimodal config.json
    (
        r"text_config|model_type|tie_word_embeddings|ignore_index|is_encoder_decoder",
        r"(vision|audio|image|video|mm|multimodal|projector|boi|eoi|boa|eoa)_.*|.*_token_index",
    )
)


def from_hf(hf: dict) -> dict[str, Any]:
    """The fields of a Llama Config from a checkpoint's `config.json`, of transformers 4 or 5.

    Raises:
        ValueError: `hf` lacks a size, has a value of the wrong type, or has a model type or an
            option that llama.py does not compute. Every option is read, known not to change the
            function, or refused.
    """
    whole = JsonFields(hf)
    is_part = "text_config" in whole
    text = whole.object("text_config").data if is_part else hf
    kind = JsonFields(text).text("model_type", among=_TYPES)
    gemma = kind == "gemma3_text"
    fields = JsonFields(_DEFAULTS.get(kind, {}) | text)
    fields.ignore("model_type")
    for option in ("attention_bias", "mlp_bias", "use_bidirectional_attention"):
        fields.expect(option, False)
    for option in ("attn_logit_softcapping", "final_logit_softcapping"):
        fields.expect(option, None)
    fields.expect("partial_rotary_factor", 1.0)
    fields.expect("is_causal", True)
    if gemma:
        fields.expect("hidden_activation", "gelu_pytorch_tanh")
        fields.ignore("hidden_act")  # transformers does not read it for Gemma 3
    else:
        fields.expect("hidden_act", "silu", "swish")
    width, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    layers = fields.integer("num_hidden_layers", most=MOST_LAYERS)
    scalar = fields.number("query_pre_attn_scalar", None, above=0) if gemma else None
    config = dict(
        vocab=fields.integer("vocab_size"),
        ffn=fields.integer("intermediate_size"),
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=fields.integer("num_key_value_heads", heads),
        head_dim=fields.integer("head_dim", width // heads),
        tied=fields.boolean("tie_word_embeddings", False),
        context=fields.integer("max_position_embeddings", 2048),
        eps=fields.number("rms_norm_eps", 1e-6, above=0, below=1),
        **_rope(fields, gemma),
        **_window(fields, kind, layers),
        qkv_bias=kind == "qwen2",
        qk_norm=kind in ("qwen3", "gemma3_text"),
        post_norms=gemma,
        norm_offset=1.0 if gemma else 0.0,
        embed_scale=width**0.5 if gemma else 1.0,
        query_scale=scalar**-0.5 if scalar else None,
        gelu=gemma,
        bos=fields.integer("bos_token_id", whole.integer("bos_token_id", None, least=0), least=0),
        eos=tuple(
            dict.fromkeys((*fields.integers("eos_token_id"), *whole.integers("eos_token_id")))
        ),
    )
    refuse_unread_options(fields)
    if is_part:
        refuse_unread_options(JsonFields(hf), _OTHER_PARTS)
    return config


def weights(config) -> dict[str, WeightMap]:
    """The tensors of a Hugging Face checkpoint that each parameter is read from.

    Example:
        >>> from jaxmem.architectures import llama
        >>> config = llama.Config(
        ...     vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8
        ... )
        >>> llama.weights(config)["layers/attn/k/kernel"].shape
        (2, 32, 16)
    """
    c, out = config, {}

    def stack(path, name, *shape, fn=same):
        names = tuple(f"model.layers.{i}.{name}" for i in range(c.layers))
        out[f"layers/{path}"] = WeightMap(names, (c.layers, *shape), fn, stacked=True)

    def kernel(path, name, k, n):
        stack(f"{path}/kernel", f"{name}.weight", k, n, fn=np.transpose)

    d, q, kv = c.width, c.heads * c.head_dim, c.kv_heads * c.head_dim
    out["embed/embedding"] = WeightMap(("model.embed_tokens.weight",), (c.vocab, d))
    for x, n in {"q": q, "k": kv, "v": kv}.items():
        kernel(f"attn/{x}", f"self_attn.{x}_proj", d, n)
        if c.qkv_bias:
            stack(f"attn/{x}/bias", f"self_attn.{x}_proj.bias", n)
        if c.qk_norm and x != "v":
            stack(f"attn/{x}_norm/scale", f"self_attn.{x}_norm.weight", c.head_dim)
    kernel("attn/out", "self_attn.o_proj", q, d)
    for x in ("gate", "up"):
        kernel(f"mlp/{x}", f"mlp.{x}_proj", d, c.ffn)
    kernel("mlp/down", "mlp.down_proj", c.ffn, d)
    after = "post_attention_layernorm.weight"
    stack("attn_norm/scale", "input_layernorm.weight", d)
    stack("mlp_norm/scale", "pre_feedforward_layernorm.weight" if c.post_norms else after, d)
    if c.post_norms:
        stack("attn_post_norm/scale", after, d)
        stack("mlp_post_norm/scale", "post_feedforward_layernorm.weight", d)
    out["final_norm/scale"] = WeightMap(("model.norm.weight",), (d,))
    if not c.tied:
        out["head/kernel"] = WeightMap(("lm_head.weight",), (d, c.vocab), np.transpose)
    return out


def _rope(fields: JsonFields, gemma: bool) -> dict[str, Any]:
    """The rotary fields of Config.

    transformers 5 writes them in `rope_parameters`, with one entry for each layer type if a model
    has several; transformers 4 writes `rope_theta` and `rope_scaling`.
    """
    rope = fields.object("rope_parameters")
    full = rope.object("full_attention") if "full_attention" in rope else rope
    sliding = rope.object("sliding_attention")
    sliding.expect("rope_type", "default")
    scaling = fields.object("rope_scaling") if "rope_scaling" in fields else full
    name = "rope_type" if "rope_type" in scaling else "type"
    kind = scaling.text(name, "default", _ROPE_FIELDS)
    scaling.expect("type", kind)
    full.expect("rope_type", kind)
    for part in (full, sliding, scaling):
        part.expect("partial_rotary_factor", 1.0)
        part.ignore("original_max_position_embeddings")
    base = fields.number("rope_theta", 10_000.0, above=0)
    theta = full.number("rope_theta", base, above=0)
    local = fields.number("rope_local_base_freq", 10_000.0, above=0) if gemma else theta
    return {
        "theta": theta,
        "rope_factors": _long_factors(scaling) if kind == "longrope" else (),
        "rope_scaling": tuple(scaling.number(name, above=0) for name in _ROPE_FIELDS[kind]),
        "local_theta": sliding.number("rope_theta", local, above=0),
    }


def _long_factors(scaling: JsonFields) -> tuple[float, ...]:
    """The factors of LongRoPE, where it has the same for short and for long texts."""
    factors = scaling.numbers("short_factor", above=0)
    if scaling.numbers("long_factor", above=0) != factors:
        scaling.refuse("long_factor", "the numbers of short_factor, which alone are computed here")
    if scaling.number("attention_factor") != 1:
        scaling.refuse("attention_factor", "1, which is what is computed here")
    scaling.ignore("factor")  # only a missing attention_factor is computed from it
    return factors


def _window(fields: JsonFields, kind: str, layers: int) -> dict[str, Any]:
    """The fields `local` and `window` of Config; {} if every layer has full attention."""
    size = fields.integer("sliding_window", 0, least=0)
    slides = fields.boolean("use_sliding_window", not kind.startswith("qwen"))
    every = fields.integer("_sliding_window_pattern", 6)
    every = fields.integer("sliding_window_pattern", every)
    first = fields.integer("max_window_layers", 28, least=0)
    types = fields.texts("layer_types")
    if types and (len(types) != layers or not set(types) <= {_FULL, _LOCAL}):
        fields.refuse("layer_types", f"{_FULL} or {_LOCAL} for each of {layers} layers")
    if kind == "llama" and size:  # transformers and vLLM differ in what they do with it
        fields.refuse("sliding_window", "none for a llama", "; its model_type may be mistral")
    if not size or not slides:
        if slides and _LOCAL in types:
            fields.refuse("sliding_window", f"a size, as layer_types names {_LOCAL}")
        return {}
    is_local = {
        "gemma3_text": lambda i: (i + 1) % every != 0,
        "qwen2": lambda i: i >= first,
        "qwen3": lambda i: i >= first,
    }.get(kind, lambda i: True)
    local = [t == _LOCAL for t in types] if types else map(is_local, range(layers))
    return {"local": tuple(local), "window": size}
