"""What a config.json says of decoders with mixtures of experts, in the words of Config."""

import math
from typing import Any

from ...io.json_fields import JsonFields
from .hf_fields import LAYER_NORM, every, read_activation, read_sizes, read_windows
from .llama4_family import read_llama4
from .rope_scaling import read_rope

_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")  # names of one number


def _rotary(fields: JsonFields) -> dict:
    """Sizes, rotary fields and activation; what only training reads is ignored."""
    fields.ignore("router_aux_loss_coef", "router_jitter_noise", "input_jitter_noise")
    sizes = read_sizes(fields)
    rope = read_rope(fields, sizes["head_dim"], sizes["context"])
    return sizes | rope | read_activation(fields)


def _mixture(fields: JsonFields, ffn: str = "moe_intermediate_size", **options: Any) -> dict:
    """The field `mixture`; `ffn` is the name of an expert's size."""
    count = next((name for name in _COUNTS if name in fields), _COUNTS[0])
    sizes = {
        "experts": fields.integer(count),
        "per_token": fields.integer("num_experts_per_tok"),
        "ffn": fields.integer(ffn),
    }
    return {"mixture": sizes | options}


def _biases(fields: JsonFields, usual: bool = False) -> dict:
    bias = fields.boolean("attention_bias", usual)
    return {"qkv_bias": bias, "out_bias": bias}


def _mixtral(fields: JsonFields) -> dict:
    config = _rotary(fields)
    windows = read_windows(fields, config["layers"], every)
    return config | windows | _mixture(fields, "intermediate_size", renormalized=True)


def qwen_mixture(fields: JsonFields, layers: int, **options: Any) -> dict:
    """The mixture of a Qwen, which some layers may be without."""
    step = fields.integer("decoder_sparse_step", 1)
    without = set(fields.integers("mlp_only_layers"))
    dense = tuple(i in without or (i + 1) % step > 0 for i in range(layers))
    options["renormalized"] = fields.boolean("norm_topk_prob", False)
    return _mixture(fields, dense=dense if any(dense) else (), **options)


def _qwen2_moe(fields: JsonFields) -> dict:
    config = _rotary(fields)
    first = fields.integer("max_window_layers", 28, least=0)
    slides = fields.boolean("use_sliding_window", False)
    is_local = lambda i: i % 2 == 0 and i < first
    windows = read_windows(fields, config["layers"], is_local, slides)
    shared = fields.integer("shared_expert_intermediate_size")
    mixture = qwen_mixture(fields, config["layers"], shared_ffn=shared, shared_gate=True)
    return config | windows | mixture | {"qkv_bias": fields.boolean("qkv_bias", True)}


def _qwen3_moe(fields: JsonFields) -> dict:
    config = _rotary(fields)
    fields.ignore("max_window_layers")
    slides = fields.boolean("use_sliding_window", False)
    windows = read_windows(fields, config["layers"], every, slides)
    mixture = qwen_mixture(fields, config["layers"])
    return config | windows | mixture | _biases(fields) | {"qk_norm": True}


def _olmoe(fields: JsonFields) -> dict:
    config = _rotary(fields) | _biases(fields)
    fields.expect("clip_qkv", None)
    renormalized = fields.boolean("norm_topk_prob", False)
    mixture = _mixture(fields, "intermediate_size", renormalized=renormalized)
    return config | mixture | {"qk_norm": True, "qk_norm_over": "all"}


def _phimoe(fields: JsonFields) -> dict:
    jitter = fields.number("router_jitter_noise", 0.01)
    config = _rotary(fields) | _biases(fields) | LAYER_NORM
    windows = read_windows(fields, config["layers"], every)
    head = {"head_bias": fields.boolean("lm_head_bias", False)}
    router = {"scores": "sparsemixer", "jitter": jitter}
    return config | windows | head | _mixture(fields, "intermediate_size", **router)


def _granitemoe(fields: JsonFields) -> dict:
    factor = lambda name: fields.number(name, 1.0, above=0)
    return (
        _rotary(fields)
        | _biases(fields)
        | _mixture(fields, "intermediate_size", renormalized=True)
        | {"embed_scale": factor("embedding_multiplier")}
        | {"query_scale": factor("attention_multiplier")}
        | {"residual_scale": factor("residual_multiplier")}
        | {"logit_scale": 1 / factor("logits_scaling")}
    )


def _gpt_oss(fields: JsonFields) -> dict:
    config = _rotary(fields) | _biases(fields, True)
    windows = read_windows(fields, config["layers"], lambda i: i % 2 == 0)
    fields.ignore("experts_per_token", "initial_context_length")  # the same as other fields
    swiglu = {
        "swiglu_limit": fields.number("swiglu_limit", 7.0, above=0),
        "swiglu_alpha": fields.number("swiglu_alpha", 1.702, above=0),
    }
    biases = {"router_bias": True, "expert_bias": True, "renormalized": True}
    mixture = _mixture(fields, "intermediate_size", **biases, **swiglu)
    return config | windows | mixture | {"sinks": True}


def _deepseek(fields: JsonFields) -> dict:
    """Multi-latent attention, and the sizes of layers."""
    fields.expect("rms_norm_eps", 1e-6)  # which the norms of latents always have
    fields.ignore("head_dim", "qk_head_dim", "num_nextn_predict_layers", "ep_size", "seq_aux")
    fields.ignore("aux_loss_alpha", "num_key_value_heads")
    fields.expect("moe_layer_freq", 1)
    sizes = read_sizes(fields, kv_heads="", head_dim="")
    latent = {
        "kv_rank": fields.integer("kv_lora_rank"),
        "nope_dim": fields.integer("qk_nope_head_dim"),
        "rope_dim": fields.integer("qk_rope_head_dim"),
        "value_dim": fields.integer("v_head_dim"),
        "q_rank": fields.integer("q_lora_rank", 0, least=0),
    }
    rope = read_rope(fields, latent["rope_dim"], sizes["context"])
    head_dim = latent["nope_dim"] + latent["rope_dim"]
    return (
        sizes
        | rope
        | _biases(fields)
        | read_activation(fields)
        | {"head_dim": head_dim, "rotary_dim": latent["rope_dim"], "latent": latent}
        | {"query_scale": head_dim**-0.5 * _yarn_factor(fields) ** 2}
        | {"interleaved": fields.boolean("rope_interleave", True)}
    )


def _yarn_factor(fields: JsonFields) -> float:
    """What YaRN multiplies queries and keys by, beside the factor of `rope_magnitude`."""
    name = "rope_scaling" if "rope_scaling" in fields else "rope_parameters"
    scaling = JsonFields(fields.data.get(name) or {}, f"{name}.")
    kind = scaling.text("rope_type" if "rope_type" in scaling else "type", "default")
    scale, factor = (scaling.number(name, 0.0) for name in ("mscale_all_dim", "factor"))
    return 1.0 if kind == "default" or factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def _deepseek_mixture(fields: JsonFields, layers: int, **options: Any) -> dict:
    """The mixture of all layers but the first ones."""
    first = fields.integer("first_k_dense_replace", 0, least=0)
    ffn, shared = (fields.integer(x) for x in ("moe_intermediate_size", "n_shared_experts"))
    return _mixture(
        fields,
        scale=fields.number("routed_scaling_factor", 1.0, above=0),
        shared_ffn=ffn * shared,
        dense=tuple(i < first for i in range(layers)) if first else (),
        **options,
    )


def _groups(fields: JsonFields) -> dict:
    return {
        "groups": fields.integer("n_group", 1),
        "groups_per_token": fields.integer("topk_group", 1),
    }


def _deepseek_v2(fields: JsonFields) -> dict:
    config = _deepseek(fields)
    fields.expect("scoring_func", "softmax")
    fields.expect("norm_topk_prob", False)
    method = fields.text("topk_method", "greedy", among=("greedy", "group_limited_greedy"))
    groups = _groups(fields)
    mixture = _deepseek_mixture(fields, config["layers"], **(groups if method != "greedy" else {}))
    return config | mixture | {"mlp_bias": fields.boolean("mlp_bias", False)}


def _deepseek_v3(fields: JsonFields) -> dict:
    config = _deepseek(fields)
    fields.expect("scoring_func", "sigmoid")
    fields.expect("topk_method", "noaux_tc")
    router = {"scores": "sigmoid", "correction": True, "group_score": "top2"}
    router["renormalized"] = fields.boolean("norm_topk_prob", True)
    return config | _deepseek_mixture(fields, config["layers"], **router, **_groups(fields))


_EPS = {"rms_norm_eps": 1e-5}
_TWO_OF = {"num_experts_per_tok": 2}

# {model_type: (reader, transformers' defaults of fields that a config.json may leave out)}
MIXTURE_FAMILIES = {
    "mixtral": (_mixtral, _EPS | _TWO_OF | {"num_local_experts": 8, "rope_theta": 1e6}),
    "qwen2_moe": (_qwen2_moe, {"sliding_window": 4096}),
    "qwen3_moe": (_qwen3_moe, {"sliding_window": 4096}),
    "olmoe": (_olmoe, _EPS),
    "phimoe": (_phimoe, _EPS | _TWO_OF | {"num_local_experts": 16, "rope_theta": 1e6}),
    "granitemoe": (_granitemoe, _TWO_OF | {"num_local_experts": 8}),
    "gpt_oss": (_gpt_oss, _EPS | {"rope_theta": 150_000.0, "sliding_window": 128, "head_dim": 64}),
    "llama4_text": (read_llama4, _EPS | {"rope_theta": 500_000.0, "attention_chunk_size": 8192}),
    "deepseek_v2": (_deepseek_v2, {}),
    "deepseek_v3": (_deepseek_v3, {"n_group": 8, "topk_group": 4, "routed_scaling_factor": 2.5}),
}
