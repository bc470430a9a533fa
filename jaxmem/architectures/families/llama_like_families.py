"""Decoders with rotary positions, such as Llama: their config.json in the words of Config."""

from typing import Any

from ...io.json_fields import JsonFields
from .gemma_families import GEMMA_FAMILIES
from .hf_fields import (
    BIASED,
    LAYER_NORM,
    all_but_each,
    every,
    layer_pattern,
    read_activation,
    read_rotary,
    read_unrotated,
    read_windows,
)


def _llama(fields: JsonFields) -> dict:
    config = read_rotary(fields)
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
    config = read_rotary(fields, **rope)
    windows = read_windows(fields, config["layers"], every)
    return config | windows | read_activation(fields)


def _ministral3(fields: JsonFields) -> dict:
    return _mistral(fields, growth=True)


def _qwen(fields: JsonFields) -> dict:
    config = read_rotary(fields)
    first = fields.integer("max_window_layers", 28, least=0)
    slides = fields.boolean("use_sliding_window", False)
    windows = read_windows(fields, config["layers"], lambda i: i >= first, slides)
    return config | windows | read_activation(fields)


def _qwen2(fields: JsonFields) -> dict:
    return _qwen(fields) | {"qkv_bias": True}


def _qwen3(fields: JsonFields) -> dict:
    return _qwen(fields) | _biases(fields) | {"qk_norm": True}


def _phi(fields: JsonFields) -> dict:
    norms = {"shared_norm": True, "qk_norm": fields.boolean("qk_layernorm", False)}
    return (
        read_rotary(fields, {"eps": "layer_norm_eps"}, part=0.5)
        | read_activation(fields, usual="gelu_new")
        | LAYER_NORM
        | BIASED
        | norms
        | {"qk_norm_bias": norms["qk_norm"], "parallel": True, "gated": False, "head_bias": True}
    )


def _phi3(fields: JsonFields) -> dict:
    config = read_rotary(fields, part=1.0)
    windows = read_windows(fields, config["layers"], every)
    return config | windows | read_activation(fields)


def _olmo(fields: JsonFields) -> dict:
    fields.expect("rms_norm_eps", 1e-5)
    config = read_rotary(fields) | _biases(fields) | read_activation(fields)
    clip = fields.number("clip_qkv", None, above=0) or 0.0
    return config | {"norm": "layer", "norm_gain": False, "clip_qkv": clip}


def _olmo2(fields: JsonFields) -> dict:
    norms = {"pre_norms": False, "post_norms": True, "qk_norm": True, "qk_norm_over": "all"}
    return read_rotary(fields) | _biases(fields) | read_activation(fields) | norms


def _olmo3(fields: JsonFields) -> dict:
    config = _olmo2(fields)
    return config | read_windows(fields, config["layers"], all_but_each(4))


def _stablelm(fields: JsonFields) -> dict:
    parallel = fields.boolean("use_parallel_residual", False)
    norms = {"parallel": parallel, "shared_norm": parallel, "qk_norm_over": "heads"}
    norms["qk_norm"] = fields.boolean("qk_layernorm", False)
    names = {"eps": "layer_norm_eps", "head_dim": ""}
    config = read_rotary(fields, names, part=0.25) | read_activation(fields) | LAYER_NORM | norms
    return config | {"qkv_bias": fields.boolean("use_qkv_bias", False)}


def _granite(fields: JsonFields) -> dict:
    return (
        read_rotary(fields)
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
        read_rotary(fields, {"eps": "layer_norm_eps"})
        | read_activation(fields)
        | {"norm": "layer", "parallel": True, "shared_norm": True, "interleaved": True}
        | {"qk_norm": fields.boolean("use_qk_norm", False), "qk_norm_over": "heads"}
        | {"qkv_bias": bias, "out_bias": bias}
        | {"logit_scale": fields.number("logit_scale", 0.0625, above=0)}
    )


def _cohere2(fields: JsonFields) -> dict:
    config = _cohere(fields)
    fields.expect("position_embedding_type", "rope_gptj")
    fields.expect("rotary_pct", 1.0)
    fields.expect("order_of_interleaved_layers", "local_attn_first")
    for name in ("use_gated_activation", "use_parallel_block"):
        fields.expect(name, True)
    fields.ignore("use_embedding_sharing", "use_parallel_embedding")
    return config | _rope_in_local(fields, config["layers"])


def _rope_in_local(fields: JsonFields, layers: int) -> dict:
    """The windows of a model whose other layers have no positions."""
    windows = read_windows(fields, layers, layer_pattern(fields, 4))
    return windows | {"no_rope": tuple(not x for x in windows.get("local", ()))}


def _starcoder2(fields: JsonFields) -> dict:
    bias = fields.boolean("use_bias", True)
    fields.expect("scale_attn_weights", True)
    fields.ignore("activation_function", "layer_norm_epsilon", "norm_type", "mlp_type")
    fields.ignore("attention_softmax_in_fp32", "scale_attention_softmax_in_fp32")
    config = read_rotary(fields, {"eps": "norm_epsilon"})
    return (
        config
        | read_windows(fields, config["layers"], every)
        | read_activation(fields, usual="gelu_pytorch_tanh")
        | LAYER_NORM
        | {"gated": False, "qkv_bias": bias, "out_bias": bias, "mlp_bias": bias}
    )


def _nemotron(fields: JsonFields) -> dict:
    norms = LAYER_NORM | {"norm_offset": 1.0, "gated": False}
    config = read_rotary(fields, {"eps": "norm_eps"}, part=0.5) | _biases(fields)
    return config | read_activation(fields, usual="relu2") | norms


def _glm(fields: JsonFields) -> dict:
    config = read_rotary(fields, part=0.5) | read_activation(fields)
    bias = fields.boolean("attention_bias", True)
    return config | {"interleaved": True, "qkv_bias": bias}


def _glm4(fields: JsonFields) -> dict:
    return _glm(fields) | {"post_norms": True}


def _arcee(fields: JsonFields) -> dict:
    config = read_rotary(fields) | _biases(fields) | read_activation(fields, usual="relu2")
    return config | {"gated": False}


def _seed_oss(fields: JsonFields) -> dict:
    config = read_rotary(fields) | _biases(fields) | read_activation(fields)
    return config | {"out_bias": fields.boolean("attention_out_bias", False)}


def _exaone4(fields: JsonFields) -> dict:
    config = read_rotary(fields) | read_activation(fields)
    norms = {"pre_norms": False, "post_norms": True, "qk_norm": True}
    return config | _rope_in_local(fields, config["layers"]) | norms


def _smollm3(fields: JsonFields) -> dict:
    config = read_rotary(fields) | _biases(fields) | read_activation(fields)
    layers, slides = config["layers"], fields.boolean("use_sliding_window", False)
    fields.ignore("max_window_layers")
    unrotated = read_unrotated(fields, layers)
    windows = read_windows(fields, layers, lambda i: unrotated[i], slides)
    return config | windows | {"no_rope": unrotated}


def _helium(fields: JsonFields) -> dict:
    bias = fields.boolean("attention_bias", False)
    config = read_rotary(fields) | read_activation(fields) | {"interleaved": True}
    return config | {"qkv_bias": bias, "mlp_bias": fields.boolean("mlp_bias", False)}


_TIED = {"tie_word_embeddings": True}
_SLIDING = {"sliding_window": 4096}
_EPS = {"layer_norm_eps": 1e-5}

# {model_type: (reader, transformers' defaults of fields that a config.json may leave out)}
ROTARY_FAMILIES = {
    "llama": (_llama, {}),
    "mistral": (_mistral, _SLIDING),
    "ministral3": (_ministral3, {}),
    "qwen2": (_qwen2, _SLIDING),
    "qwen3": (_qwen3, _SLIDING | {"head_dim": 128}),
    **GEMMA_FAMILIES,
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
    "glm": (_glm, {"rms_norm_eps": 1.5625e-7, "head_dim": 128}),
    "arcee": (_arcee, {"rms_norm_eps": 1e-5}),
    "seed_oss": (_seed_oss, {"attention_bias": True, "head_dim": 128}),
    "glm4": (_glm4, {"rms_norm_eps": 1.5625e-7, "head_dim": 128}),
    "exaone4": (_exaone4, _SLIDING | {"rms_norm_eps": 1e-5}),
    "smollm3": (_smollm3, _TIED | {"rope_theta": 2e6}),
    "helium": (_helium, {"rms_norm_eps": 1e-8, "head_dim": 128, "rope_theta": 100_000.0}),
}
