"""What a config.json says of decoders with attention in some layers and a recurrence in others."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from ...io.json_fields import JsonFields
from .hf_fields import read_activation, read_rotary, read_sizes
from .mixture_families import qwen_mixture
from .recurrent_families import step_range, step_rank

_LINEAR, _FULL, _CONV = "linear_attention", "full_attention", "conv"
# `hidden_act` is also the activation after the convolution of a scan or a delta rule.
_SILU = ("silu", "swish")


def _jamba(fields: JsonFields) -> dict[str, Any]:
    fields.ignore("use_mamba_kernels", "use_mambapy", "use_associative_scan", "num_logits_to_keep")
    fields.ignore("calc_logits_for_entire_prompt", "router_aux_loss_coef")
    fields.expect("mamba_inner_layernorms", True)
    fields.expect("hidden_act", *_SILU)
    config = read_sizes(fields) | {"positions": "none"}
    layers, width = config["layers"], config["width"]
    in_turn = lambda name, period, offset: [
        i % fields.integer(f"{name}_layer_period", period)
        == fields.integer(f"{name}_layer_offset", offset, least=0)
        for i in range(layers)
    ]
    attention, experts = in_turn("attn", 8, 4), in_turn("expert", 2, 1)
    count, per_token = fields.integer("num_experts", 16), fields.integer("num_experts_per_tok", 2)
    if count > 1 and any(experts):
        dense = tuple(not x for x in experts) if not all(experts) else ()
        sizes = {"experts": count, "per_token": per_token, "ffn": config["ffn"], "dense": dense}
        config["mixture"] = sizes
    bias = fields.boolean("mamba_proj_bias", False)
    recurrence = dict(
        kind="mamba",
        channels=fields.integer("mamba_expand", 2) * width,
        state=fields.integer("mamba_d_state", 16),
        taps=fields.integer("mamba_d_conv", 4),
        step_rank=step_rank(fields, "mamba_dt_rank", width),
        layers=tuple(not x for x in attention),
        in_bias=bias,
        out_bias=bias,
        conv_bias=fields.boolean("mamba_conv_bias", True),
        inner_norms=True,
    )
    return config | {"recurrence": recurrence}


def _falcon_h1(fields: JsonFields) -> dict[str, Any]:
    fields.ignore("mamba_chunk_size", "num_logits_to_keep", "mamba_use_mlp", "attn_layer_indices")
    fields.expect("hidden_act", *_SILU)
    config = read_rotary(fields)
    bias, mlp_bias = fields.boolean("attention_bias", False), fields.boolean("mlp_bias", False)
    factor = lambda name: fields.number(name, 1.0)
    before, key = factor("attention_in_multiplier"), factor("key_multiplier")
    if bias and before != 1:
        fields.refuse("attention_in_multiplier", "1 with attention_bias")
    heads = fields.integer("mamba_n_heads", 128)
    usual = fields.integer("mamba_expand", 2) * config["width"]
    channels = fields.integer("mamba_d_ssm", usual)
    if fields.data.get("mamba_d_head", "auto") == "auto":
        fields.ignore("mamba_d_head")
    elif fields.integer("mamba_d_head") * heads != channels:
        fields.refuse("mamba_d_head", f"a width of {heads} heads that makes {channels} channels")
    norm_first = fields.boolean("mamba_norm_before_gate", True)
    norm = "gate_last" if norm_first else "gate_first"
    recurrence = dict(
        kind="mamba2",
        channels=channels,
        state=fields.integer("mamba_d_state", 256),
        heads=heads,
        groups=fields.integer("mamba_n_groups", 1),
        taps=fields.integer("mamba_d_conv", 4),
        beside=True,
        in_bias=fields.boolean("mamba_proj_bias", False),
        out_bias=fields.boolean("projectors_bias", False),
        conv_bias=fields.boolean("mamba_conv_bias", True),
        norm=norm if fields.boolean("mamba_rms_norm", False) else "none",
        step_range=step_range(fields),
        in_scale=factor("ssm_in_multiplier"),
        scales=fields.numbers("ssm_multipliers"),
        out_scale=factor("ssm_out_multiplier"),
    )
    return config | {
        "recurrence": recurrence,
        "qkv_bias": bias,
        "out_bias": bias,
        "mlp_bias": mlp_bias,
        "query_scale": config["head_dim"] ** -0.5 * before**2 * key,
        "attention_scale": before * factor("attention_out_multiplier"),
        "mlp_scales": fields.numbers("mlp_multipliers"),
        "embed_scale": factor("embedding_multiplier"),
        "logit_scale": factor("lm_head_multiplier"),
    }


def _recurrent_gemma(fields: JsonFields) -> dict[str, Any]:
    fields.ignore("w_init_variance_scale", "final_w_init_variance_scale", "conv1d_width")
    fields.expect("embeddings_scale_by_sqrt_dim", True)
    config = read_rotary(fields, part=0.5) | read_activation(
        fields, "hidden_activation", "gelu_pytorch_tanh"
    )
    if config["ffn"] % 2:
        fields.refuse("intermediate_size", "an even number, twice the neurons of an MLP")
    name = "block_types" if "block_types" in fields else "_block_types"
    types = fields.texts(name) or ["recurrent", "recurrent", "attention"]
    if not set(types) <= {"recurrent", "attention"}:
        fields.refuse(name, "recurrent or attention")
    recurrent = tuple(types[i % len(types)] == "recurrent" for i in range(config["layers"]))
    width, heads = fields.integer("lru_width", config["width"]), config["heads"]
    recurrence = dict(
        kind="gated",
        channels=width,
        heads=heads,
        taps=fields.integer("conv1d_width", 4),
        layers=recurrent,
        in_bias=True,
        out_bias=True,
        conv_bias=True,
    )
    window = fields.integer("attention_window_size", 2048)
    scale = np.float32(config["width"] ** 0.5).astype(jnp.bfloat16)  # as the model was trained
    return config | {
        "ffn": config["ffn"] // 2,
        "recurrence": recurrence,
        "local": tuple(not x for x in recurrent),
        "window": window,
        "norm_offset": 1.0,
        "embed_scale": float(scale),
        "qkv_bias": fields.boolean("attention_bias", False),
        "out_bias": True,
        "mlp_bias": True,
        "logit_softcap": fields.number("logits_soft_cap", 30.0, above=0),
    }


def _lfm2(fields: JsonFields) -> dict[str, Any]:
    fields.ignore("block_dim", "num_heads", "block_mlp_init_scale", "block_out_init_scale")
    fields.ignore("block_norm_eps", "block_use_xavier_init", "conv_use_xavier_init", "theta")
    fields.expect("block_use_swiglu", True)
    fields.expect("use_pos_enc", True)
    ffn = "block_ff_dim" if "block_ff_dim" in fields else "intermediate_size"
    fields.ignore("intermediate_size")
    config = read_rotary(fields, {"eps": "norm_eps", "ffn": ffn})
    for name in ("conv_dim", "conv_dim_out"):
        fields.expect(name, config["width"])
    layers = config["layers"]
    full = fields.integers("full_attn_idxs") if "full_attn_idxs" in fields else range(layers)
    types = fields.texts("layer_types") or [_FULL if i in full else _CONV for i in range(layers)]
    if len(types) != layers or not set(types) <= {_FULL, _CONV}:
        fields.refuse("layer_types", f"{_FULL} or {_CONV} for each of {layers} layers")
    bias = fields.boolean("conv_bias", False)
    recurrence = dict(
        kind="convolution",
        channels=config["width"],
        taps=fields.integer("conv_L_cache", 3),
        layers=tuple(t == _CONV for t in types),
        in_bias=bias,
        out_bias=bias,
        conv_bias=bias,
    )
    return config | {
        "ffn": _adjusted(fields, config["ffn"]),
        "recurrence": recurrence if _CONV in types else None,
        "qk_norm": True,
    }


def _adjusted(fields: JsonFields, ffn: int) -> int:
    """The neurons of an LFM2's MLP: two thirds of a size, rounded up to a multiple."""
    multiplier = fields.number("block_ffn_dim_multiplier", None, above=0)
    multiple = fields.integer("block_multiple_of", 256)
    if not fields.boolean("block_auto_adjust_ff_dim", True):
        return ffn
    ffn = 2 * ffn // 3
    return ffn if multiplier is None else -(-int(multiplier * ffn) // multiple) * multiple


def _qwen3_next(fields: JsonFields) -> dict[str, Any]:
    fields.ignore("router_aux_loss_coef", "max_window_layers", "rope_scaling_factor")
    fields.expect("use_sliding_window", False)
    fields.expect("hidden_act", *_SILU)
    config = read_rotary(fields, part=0.25)
    layers, every = config["layers"], fields.integer("full_attention_interval", 4)
    types = fields.texts("layer_types")
    types = types or [_LINEAR if (i + 1) % every else _FULL for i in range(layers)]
    if len(types) != layers or not set(types) <= {_LINEAR, _FULL}:
        fields.refuse("layer_types", f"{_LINEAR} or {_FULL} for each of {layers} layers")
    shared = fields.integer("shared_expert_intermediate_size", 512)
    heads = fields.integer("linear_num_value_heads", 32)
    recurrence = dict(
        kind="delta",
        channels=heads * fields.integer("linear_value_head_dim", 128),
        state=fields.integer("linear_key_head_dim", 128),
        heads=heads,
        groups=fields.integer("linear_num_key_heads", 16),
        taps=fields.integer("linear_conv_kernel_dim", 4),
        layers=tuple(t == _LINEAR for t in types),
    )
    bias = fields.boolean("attention_bias", False)
    return (
        config
        | qwen_mixture(fields, layers, shared_ffn=shared, shared_gate=True)
        | {"recurrence": recurrence if _LINEAR in types else None}
        | {"norm_offset": 1.0, "qk_norm": True, "output_gate": True}
        | {"qkv_bias": bias, "out_bias": bias}
    )


_TIED = {"tie_word_embeddings": True}
# The entries are those of `ROTARY_FAMILIES` in llama_like_families.py.
HYBRID_FAMILIES = {
    "jamba": (_jamba, {"max_position_embeddings": 262_144}),
    "falcon_h1": (_falcon_h1, {"max_position_embeddings": 8192, "rms_norm_eps": 1e-5}),
    "recurrent_gemma": (_recurrent_gemma, _TIED | {"max_position_embeddings": 8192}),
    "lfm2": (_lfm2, _TIED | {"rope_theta": 1e6, "norm_eps": 1e-5, "block_ffn_dim_multiplier": 1.0}),
    "qwen3_next": (_qwen3_next, {"norm_topk_prob": True, "head_dim": 256}),
}
