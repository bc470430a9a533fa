"""The names of the tensors of a checkpoint, for each family of decoders."""

from .gguf_names import GGUF_FUSED_GATE_UP, GGUF_FUSED_QKV, GGUF_NAMES

_LLAMA = {
    "layer": "model.layers.{}.",
    "embed": "model.embed_tokens",
    "final_norm": "model.norm",
    "head": "lm_head",
    "attn_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "attn/q": "self_attn.q_proj",
    "attn/k": "self_attn.k_proj",
    "attn/v": "self_attn.v_proj",
    "attn/out": "self_attn.o_proj",
    "attn/q_norm": "self_attn.q_norm",
    "attn/k_norm": "self_attn.k_norm",
    "mlp/gate": "mlp.gate_proj",
    "mlp/up": "mlp.up_proj",
    "mlp/down": "mlp.down_proj",
}
_GEMMA = _LLAMA | {
    "mlp_norm": "pre_feedforward_layernorm",
    "attn_post_norm": "post_attention_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}
_QK_LAYERNORM = {
    "attn/q_norm": "self_attn.q_layernorm",
    "attn/k_norm": "self_attn.k_layernorm",
}
_FUSED_MLP = {"mlp/gate": "mlp.gate_up_proj", "mlp/up": "mlp.gate_up_proj"}
_GPT = {
    "layer": "transformer.h.{}.",
    "embed": "transformer.wte",
    "positions": "transformer.wpe",
    "final_norm": "transformer.ln_f",
    "head": "lm_head",
    "attn_norm": "ln_1",
    "mlp_norm": "ln_2",
    "attn/q": "attn.q_proj",
    "attn/k": "attn.k_proj",
    "attn/v": "attn.v_proj",
    "attn/out": "attn.out_proj",
    "mlp/up": "mlp.fc_in",
    "mlp/down": "mlp.fc_out",
}
_BLOOM = _GPT | {
    "embed": "transformer.word_embeddings",
    "embed_norm": "transformer.word_embeddings_layernorm",
    "attn_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "attn/out": "self_attention.dense",
    "mlp/up": "mlp.dense_h_to_4h",
    "mlp/down": "mlp.dense_4h_to_h",
}


def _qkv(name: str) -> dict[str, str]:
    """One tensor for queries, keys and values."""
    return {f"attn/{x}": name for x in "qkv"}


def _experts(stem: str, gate: str, up: str, down: str) -> dict[str, str]:
    """The matrices of experts; "{}" in a name is the number of the expert."""
    return {
        f"mlp/experts/{part}": f"{stem}{name}"
        for part, name in {"gate": gate, "up": up, "down": down}.items()
    }


def _shared(stem: str) -> dict[str, str]:
    """The matrices of the expert that every token goes to."""
    return {f"mlp/shared/{part}": f"{stem}.{part}_proj" for part in ("gate", "up", "down")}


_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
_MIXTRAL = (
    _LLAMA
    | {"mlp/router": "block_sparse_moe.gate"}
    | _experts("block_sparse_moe.experts.{}.", "w1", "w3", "w2")
)
_QWEN_MOE = (
    _LLAMA
    | {"mlp/router": "mlp.gate", "mlp/shared_gate": "mlp.shared_expert_gate"}
    | _experts("mlp.experts.{}.", *_PROJECTIONS)
    | _shared("mlp.shared_expert")
)
_DEEPSEEK = (
    _QWEN_MOE
    | _shared("mlp.shared_experts")
    | {"mlp/correction": "mlp.gate.e_score_correction_bias"}
    | {"attn/q_down": "self_attn.q_a_proj", "attn/q_norm": "self_attn.q_a_layernorm"}
    | {"attn/q_up": "self_attn.q_b_proj", "attn/kv_down": "self_attn.kv_a_proj_with_mqa"}
    | {"attn/kv_norm": "self_attn.kv_a_layernorm"}
    | {"attn/k_up": "self_attn.kv_b_proj", "attn/v_up": "self_attn.kv_b_proj"}
)
# {Config.tensor_names: {path of a module: its name in the checkpoint}}
NAMES = {
    "llama": _LLAMA,
    "mixtral": _MIXTRAL,
    "qwen_moe": _QWEN_MOE,
    "deepseek": _DEEPSEEK,
    "granitemoe": _LLAMA
    | {"mlp/router": "block_sparse_moe.router.layer"}
    | _experts("block_sparse_moe.", "input_linear", "input_linear", "output_linear"),
    "gpt_oss": _LLAMA
    | {"mlp/router": "mlp.router", "attn/sinks": "self_attn.sinks"}
    | _experts("mlp.experts.", "gate_up_proj", "gate_up_proj", "down_proj"),
    "llama4_text": _LLAMA
    | {f"mlp/{x}": f"feed_forward.{x}_proj" for x in ("gate", "up", "down")}
    | {"mlp/router": "feed_forward.router"}
    | _experts("feed_forward.experts.", "gate_up_proj", "gate_up_proj", "down_proj")
    | _shared("feed_forward.shared_expert"),
    "gemma": _GEMMA,
    "post_norms": _GEMMA | {"mlp_norm": ""},
    "phi": _LLAMA
    | _QK_LAYERNORM
    | {"final_norm": "model.final_layernorm", "attn/out": "self_attn.dense"}
    | {"mlp/up": "mlp.fc1", "mlp/down": "mlp.fc2"},
    "phi3": _LLAMA | _FUSED_MLP | _qkv("self_attn.qkv_proj"),
    "stablelm": _LLAMA | _QK_LAYERNORM,
    "starcoder2": _LLAMA | {"mlp/up": "mlp.c_fc", "mlp/down": "mlp.c_proj"},
    "glm4": _LLAMA
    | _FUSED_MLP
    | {"attn_post_norm": "post_self_attn_layernorm", "mlp_post_norm": "post_mlp_layernorm"},
    "gptj": _GPT,
    "codegen": _GPT | _qkv("attn.qkv_proj"),
    "gpt_neo": _GPT
    | {f"attn/{x}": f"attn.attention.{x}_proj" for x in ("q", "k", "v", "out")}
    | {"mlp/up": "mlp.c_fc", "mlp/down": "mlp.c_proj"},
    "gpt_bigcode": _GPT
    | _qkv("attn.c_attn")
    | {"attn/out": "attn.c_proj", "mlp/up": "mlp.c_fc", "mlp/down": "mlp.c_proj"},
    "bloom": _BLOOM | _qkv("self_attention.query_key_value"),
    "falcon": _BLOOM | _qkv("self_attention.query_key_value"),
    "falcon_two_norms": _BLOOM
    | _qkv("self_attention.query_key_value")
    | {"attn_norm": "ln_attn", "mlp_norm": "ln_mlp"},
    "gpt_neox": _BLOOM
    | _qkv("attention.query_key_value")
    | {"layer": "gpt_neox.layers.{}.", "embed": "gpt_neox.embed_in", "attn/out": "attention.dense"}
    | {"final_norm": "gpt_neox.final_layer_norm"},
    "mpt": _GPT
    | _qkv("attn.Wqkv")
    | {"layer": "transformer.blocks.{}.", "final_norm": "transformer.norm_f"}
    | {"attn_norm": "norm_1", "mlp_norm": "norm_2"}
    | {"mlp/up": "ffn.up_proj", "mlp/down": "ffn.down_proj"},
    "opt": _LLAMA
    | {"layer": "model.decoder.layers.{}.", "embed": "model.decoder.embed_tokens"}
    | {"positions": "model.decoder.embed_positions", "final_norm": "model.decoder.final_layer_norm"}
    | {"embed_in": "model.decoder.project_in", "embed_out": "model.decoder.project_out"}
    | {"attn_norm": "self_attn_layer_norm", "mlp_norm": "final_layer_norm"}
    | {"attn/out": "self_attn.out_proj", "mlp/up": "fc1", "mlp/down": "fc2"},
    **GGUF_NAMES,
}
# How one tensor holds queries, keys and values: (their order, the number of blocks of that order);
# None for a block for each head of keys.
FUSED_QKV = {
    "phi3": ("qkv", 1),
    "mpt": ("qkv", 1),
    "codegen": ("qvk", 4),
    **dict.fromkeys(
        ("gpt_bigcode", "bloom", "falcon", "falcon_two_norms", "gpt_neox"), ("qkv", None)
    ),
    **dict.fromkeys(GGUF_FUSED_QKV, ("qkv", 1)),
}
FUSED_GATE_UP = ("phi3", "glm4", *GGUF_FUSED_GATE_UP)
