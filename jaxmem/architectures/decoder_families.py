"""What a config.json says of each family of decoders, in the words of Config."""

from collections.abc import Callable
from typing import Any

from ..io.json_fields import JsonFields
from .hf_fields import (
    BIASED,
    LAYER_NORM,
    all_but_each,
    every,
    read_activation,
    read_sizes,
    read_windows,
)
from .hf_rope import read_rope


def _rotary(fields: JsonFields, names: dict[str, str] | None = None, **rope: Any) -> dict:
    """The sizes and rotary fields; `names` renames sizes, `rope` are options of `read_rope`."""
    sizes = read_sizes(fields, **(names or {}))
    return sizes | read_rope(fields, sizes["head_dim"], sizes["context"], **rope)


def _llama(fields: JsonFields) -> dict:
    config = _rotary(fields)
    if fields.integer("sliding_window", 0, least=0):  # transformers and vLLM differ in its effect
        fields.refuse("sliding_window", "none for a llama", "; its model_type may be mistral")
    read_windows(fields, config["layers"], every)
    return config | _biases(fields) | read_activation(fields)


def _biases(fields: JsonFields) -> dict:
    """The biases of families whose two fields name them."""
    attention = fields.boolean("attention_bias", False)
    mlp = fields.boolean("mlp_bias", False)
    return {"qkv_bias": attention, "out_bias": attention, "mlp_bias": mlp}


def _mistral(fields: JsonFields, **rope: Any) -> dict:
    config = _rotary(fields, **rope)
    windows = read_windows(fields, config["layers"], every)
    return config | windows | read_activation(fields)


def _ministral3(fields: JsonFields) -> dict:
    return _mistral(fields, growth=True)


def _qwen(fields: JsonFields) -> dict:
    config = _rotary(fields)
    first = fields.integer("max_window_layers", 28, least=0)
    slides = fields.boolean("use_sliding_window", False)
    windows = read_windows(fields, config["layers"], lambda i: i >= first, slides)
    return config | windows | read_activation(fields)


def _qwen2(fields: JsonFields) -> dict:
    return _qwen(fields) | {"qkv_bias": True}


def _qwen3(fields: JsonFields) -> dict:
    return _qwen(fields) | _biases(fields) | {"qk_norm": True}


def _gemma(fields: JsonFields, **rope: Any) -> dict:
    config = _rotary(fields, **rope)
    fields.expect("use_bidirectional_attention", False)
    act = "hidden_activation" if "hidden_activation" in fields else "hidden_act"
    fields.ignore("hidden_act")
    bias = fields.boolean("attention_bias", False)
    return (
        config
        | read_activation(fields, act, "gelu_pytorch_tanh")
        | {"norm_offset": 1.0, "embed_scale": config["width"] ** 0.5}
        | {"qkv_bias": bias, "out_bias": bias}
    )


def _gemma2(fields: JsonFields) -> dict:
    config = _gemma(fields)
    windows = read_windows(fields, config["layers"], all_but_each(2))
    cap = lambda name: fields.number(name, None, above=0) or 0.0
    return config | windows | _query_scale(fields) | {
        "post_norms": True,
        "attention_softcap": cap("attn_logit_softcapping"),
        "logit_softcap": cap("final_logit_softcapping"),
    }  # fmt: skip


def _gemma3(fields: JsonFields) -> dict:
    config = _gemma(fields, local_theta=10_000.0)
    windows = read_windows(fields, config["layers"], _pattern(fields, 6))
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        fields.expect(name, None)
    norms = {"qk_norm": True, "post_norms": True}
    return config | windows | _query_scale(fields) | norms


def _query_scale(fields: JsonFields) -> dict:
    scalar = fields.number("query_pre_attn_scalar", None, above=0)
    return {"query_scale": scalar**-0.5 if scalar else None}


def _phi(fields: JsonFields) -> dict:
    norms = {"shared_norm": True, "qk_norm": fields.boolean("qk_layernorm", False)}
    return (
        _rotary(fields, {"eps": "layer_norm_eps"}, part=0.5)
        | read_activation(fields, usual="gelu_new")
        | LAYER_NORM
        | BIASED
        | norms
        | {"qk_norm_bias": norms["qk_norm"], "parallel": True, "gated": False, "head_bias": True}
    )


def _phi3(fields: JsonFields) -> dict:
    config = _rotary(fields, part=1.0)
    windows = read_windows(fields, config["layers"], every)
    return config | windows | read_activation(fields)


def _olmo(fields: JsonFields) -> dict:
    fields.expect("rms_norm_eps", 1e-5)
    config = _rotary(fields) | _biases(fields) | read_activation(fields)
    clip = fields.number("clip_qkv", None, above=0) or 0.0
    return config | {"norm": "layer", "norm_gain": False, "clip_qkv": clip}


def _olmo2(fields: JsonFields) -> dict:
    norms = {"pre_norms": False, "post_norms": True, "qk_norm": True, "qk_norm_over": "all"}
    return _rotary(fields) | _biases(fields) | read_activation(fields) | norms


def _olmo3(fields: JsonFields) -> dict:
    config = _olmo2(fields)
    return config | read_windows(fields, config["layers"], all_but_each(4))


def _stablelm(fields: JsonFields) -> dict:
    parallel = fields.boolean("use_parallel_residual", False)
    norms = {"parallel": parallel, "shared_norm": parallel, "qk_norm_over": "heads"}
    norms["qk_norm"] = fields.boolean("qk_layernorm", False)
    names = {"eps": "layer_norm_eps", "head_dim": ""}
    config = _rotary(fields, names, part=0.25) | read_activation(fields) | LAYER_NORM | norms
    return config | {"qkv_bias": fields.boolean("use_qkv_bias", False)}


def _granite(fields: JsonFields) -> dict:
    return (
        _rotary(fields)
        | _biases(fields)
        | read_activation(fields)
        | {
            "embed_scale": fields.number("embedding_multiplier", 1.0, above=0),
            "query_scale": fields.number("attention_multiplier", 1.0, above=0),
            "residual_scale": fields.number("residual_multiplier", 1.0, above=0),
            "logit_scale": 1 / fields.number("logits_scaling", 1.0, above=0),
        }
    )


def _cohere(fields: JsonFields) -> dict:
    bias = fields.boolean("attention_bias", False)
    return (
        _rotary(fields, {"eps": "layer_norm_eps"})
        | read_activation(fields)
        | {"norm": "layer", "parallel": True, "shared_norm": True, "interleaved": True}
        | {"qk_norm": fields.boolean("use_qk_norm", False), "qk_norm_over": "heads"}
        | {"qkv_bias": bias, "out_bias": bias}
        | {"logit_scale": fields.number("logit_scale", 0.0625, above=0)}
    )


def _cohere2(fields: JsonFields) -> dict:
    config = _cohere(fields)
    return config | _rope_in_local(fields, config["layers"])


def _pattern(fields: JsonFields, usual: int) -> Callable[[int], bool]:
    """Which layers are local where `layer_types` does not say it: all but every n-th."""
    if "layer_types" in fields:
        fields.ignore("sliding_window_pattern", "_sliding_window_pattern")
        return every
    usual = fields.integer("_sliding_window_pattern", usual)
    return all_but_each(fields.integer("sliding_window_pattern", usual))


def _rope_in_local(fields: JsonFields, layers: int) -> dict:
    """The windows of a model whose other layers have no positions."""
    windows = read_windows(fields, layers, _pattern(fields, 4))
    return windows | {"no_rope": tuple(not x for x in windows.get("local", ()))}


def _starcoder2(fields: JsonFields) -> dict:
    bias = fields.boolean("use_bias", True)
    config = _rotary(fields, {"eps": "norm_epsilon"})
    return (
        config
        | read_windows(fields, config["layers"], every)
        | read_activation(fields, usual="gelu_pytorch_tanh")
        | LAYER_NORM
        | {"gated": False, "qkv_bias": bias, "out_bias": bias, "mlp_bias": bias}
    )


def _nemotron(fields: JsonFields) -> dict:
    norms = LAYER_NORM | {"norm_offset": 1.0, "gated": False}
    config = _rotary(fields, {"eps": "norm_eps"}, part=0.5) | _biases(fields)
    return config | read_activation(fields, usual="relu2") | norms


def _glm4(fields: JsonFields) -> dict:
    config = _rotary(fields, part=0.5) | read_activation(fields)
    bias = fields.boolean("attention_bias", True)
    return config | {"interleaved": True, "post_norms": True, "qkv_bias": bias}


def _exaone4(fields: JsonFields) -> dict:
    config = _rotary(fields) | read_activation(fields)
    norms = {"pre_norms": False, "post_norms": True, "qk_norm": True}
    return config | _rope_in_local(fields, config["layers"]) | norms


def _smollm3(fields: JsonFields) -> dict:
    config = _rotary(fields) | _biases(fields) | read_activation(fields)
    layers, slides = config["layers"], fields.boolean("use_sliding_window", False)
    interval = fields.integer("no_rope_layer_interval", 4)
    usual = [int((i + 1) % interval > 0) for i in range(layers)]
    rotated = fields.integers("no_rope_layers") or usual
    if len(rotated) != layers or not set(rotated) <= {0, 1}:
        fields.refuse("no_rope_layers", f"0 or 1 for each of {layers} layers")
    windows = read_windows(fields, layers, lambda i: not rotated[i], slides)
    return config | windows | {"no_rope": tuple(not x for x in rotated)}


def _helium(fields: JsonFields) -> dict:
    bias = fields.boolean("attention_bias", False)
    config = _rotary(fields) | read_activation(fields) | {"interleaved": True}
    return config | {"qkv_bias": bias, "mlp_bias": fields.boolean("mlp_bias", False)}


_TIED = {"tie_word_embeddings": True}
_GEMMA = _TIED | {
    "vocab_size": 256_000,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "bos_token_id": 2,
    "eos_token_id": 1,
}
_GEMMA2 = _GEMMA | {
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
_GEMMA3 = _GEMMA | {
    "vocab_size": 262_208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "rope_theta": 1e6,
    "query_pre_attn_scalar": 256,
    "max_position_embeddings": 131_072,
    "sliding_window": 4096,
}
_SLIDING = {"sliding_window": 4096}
_EPS = {"layer_norm_eps": 1e-5}

# {model_type: (reader, transformers' defaults of fields that a config.json may leave out)}
ROTARY_FAMILIES = {
    "llama": (_llama, {}),
    "mistral": (_mistral, _SLIDING),
    "ministral3": (_ministral3, {}),
    "qwen2": (_qwen2, _SLIDING),
    "qwen3": (_qwen3, _SLIDING | {"head_dim": 128}),
    "gemma": (_gemma, _GEMMA),
    "gemma2": (_gemma2, _GEMMA2),
    "gemma3_text": (_gemma3, _GEMMA3),
    "phi": (_phi, _EPS),
    "phi3": (_phi3, {"rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096}),
    "olmo": (_olmo, {"rms_norm_eps": 1e-5}),
    "olmo2": (_olmo2, {"rms_norm_eps": 1e-5}),
    "olmo3": (_olmo3, _SLIDING | {"rms_norm_eps": 1e-5}),
    "stablelm": (_stablelm, _EPS),
    "granite": (_granite, {}),
    "cohere": (_cohere, _TIED | _EPS | {"rope_theta": 500_000.0}),
    "cohere2": (_cohere2, _TIED | _EPS | _SLIDING | {"head_dim": 128}),
    "starcoder2": (_starcoder2, _TIED | {"norm_epsilon": 1e-5}),
    "nemotron": (_nemotron, {"norm_eps": 1e-5}),
    "glm4": (_glm4, {"rms_norm_eps": 1.5625e-7, "head_dim": 128}),
    "exaone4": (_exaone4, _SLIDING | {"rms_norm_eps": 1e-5}),
    "smollm3": (_smollm3, _TIED | {"rope_theta": 2e6}),
    "helium": (_helium, {"rms_norm_eps": 1e-8, "head_dim": 128, "rope_theta": 100_000.0}),
}
