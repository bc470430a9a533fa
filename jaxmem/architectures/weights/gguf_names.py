"""llama.cpp's names of the tensors of a decoder, which are alike for all of its architectures."""

_GGUF = {
    "layer": "blk.{}.",
    "embed": "token_embd",
    "positions": "position_embd",
    "embed_norm": "token_embd_norm",
    "final_norm": "output_norm",
    "head": "output",
    "attn_norm": "attn_norm",
    "attn_post_norm": "post_attention_norm",
    "mlp_norm": "ffn_norm",
    "mlp_post_norm": "post_ffw_norm",
    "attn/q": "attn_q",
    "attn/k": "attn_k",
    "attn/v": "attn_v",
    "attn/out": "attn_output",
    "attn/q_norm": "attn_q_norm",
    "attn/k_norm": "attn_k_norm",
    "attn/sinks": "attn_sinks.weight",
    "attn/q_down": "attn_q_a",
    "attn/q_up": "attn_q_b",
    "attn/kv_down": "attn_kv_a_mqa",
    "attn/kv_norm": "attn_kv_a_norm",
    "attn/k_up": "attn_k_b",
    "attn/v_up": "attn_v_b",
    "mlp/gate": "ffn_gate",
    "mlp/up": "ffn_up",
    "mlp/down": "ffn_down",
    "mlp/router": "ffn_gate_inp",
    "mlp/correction": "exp_probs_b.bias",
    "mlp/experts/gate": "ffn_gate_exps",
    "mlp/experts/up": "ffn_up_exps",
    "mlp/experts/down": "ffn_down_exps",
    "mlp/shared_gate": "ffn_gate_inp_shexp",
    "mlp/shared/gate": "ffn_gate_shexp",
    "mlp/shared/up": "ffn_up_shexp",
    "mlp/shared/down": "ffn_down_shexp",
}
_QKV = {f"attn/{part}": "attn_qkv" for part in "qkv"}
_GATE_UP = {"mlp/gate": "ffn_up"}

# {Config.tensor_names: {path of a module: its name in the file}}. "qkv" and "gate_up" say what one
# tensor holds; the other names say which architecture calls a norm otherwise.
GGUF_NAMES = {
    "gguf": _GGUF,
    "gguf qkv": _GGUF | _QKV,
    "gguf gate_up": _GGUF | _GATE_UP,
    "gguf qkv gate_up": _GGUF | _QKV | _GATE_UP,
    "gguf post_attention_norm": _GGUF | {"mlp_norm": "post_attention_norm"},
    "gguf latent": _GGUF | {"attn/q_norm": "attn_q_a_norm"},
    "gguf qkv attn_norm_2": _GGUF | _QKV | {"attn_norm": "attn_norm_2", "mlp_norm": "attn_norm"},
}
GGUF_FUSED_QKV = tuple(name for name, names in GGUF_NAMES.items() if "attn_qkv" in names.values())
GGUF_FUSED_GATE_UP = tuple(name for name in GGUF_NAMES if "gate_up" in name)
