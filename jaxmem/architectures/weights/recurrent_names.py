"""The names of the tensors of a Hugging Face checkpoint, for decoders with recurrent layers."""

from .decoder_names import NAMES

_MAMBA = {
    "layer": "backbone.layers.{}.",
    "embed": "backbone.embeddings",
    "final_norm": "backbone.norm_f",
    "head": "lm_head",
    "attn_norm": "norm",
}


def _scan(stem: str) -> dict[str, str]:
    """What every selective scan has."""
    parts = {"in": "in_proj", "gate": "in_proj", "out": "out_proj", "conv": "conv1d"}
    parts |= {"log_decay": "A_log", "skip": "D"}
    return {f"mixer/{part}": f"{stem}.{name}" for part, name in parts.items()}


def _mamba(stem: str) -> dict[str, str]:
    """A selective scan whose steps are made of the convolved input."""
    norms = {"step_norm": "dt_layernorm", "b_norm": "b_layernorm", "c_norm": "c_layernorm"}
    parts = {"select": "x_proj", "step": "dt_proj"}
    parts |= {f"{part}/scale": f"{name}.weight" for part, name in norms.items()}
    return _scan(stem) | {f"mixer/{part}": f"{stem}.{name}" for part, name in parts.items()}


def _mamba2(stem: str) -> dict[str, str]:
    """A selective scan of heads."""
    parts = dict.fromkeys(("b", "c", "step"), "in_proj")
    parts |= {"step_bias": "dt_bias", "norm/scale": "norm.weight"}
    return _scan(stem) | {f"mixer/{part}": f"{stem}.{name}" for part, name in parts.items()}


_FEED_FORWARD = {f"mlp/{x}": f"feed_forward.{x}_proj" for x in ("gate", "up", "down")}
_HYBRID = (
    NAMES["llama"]
    | _FEED_FORWARD
    | {"final_norm": "model.final_layernorm", "mlp_norm": "pre_ff_layernorm"}
)
_RG_LRU = {
    "gate": "linear_y",
    "in": "linear_x",
    "out": "linear_out",
    "conv": "conv_1d",
    "decay": "rg_lru.recurrent_param",
    "keep_gate/kernel": "rg_lru.recurrent_gate_weight",
    "keep_gate/bias": "rg_lru.recurrent_gate_bias",
    "input_gate/kernel": "rg_lru.input_gate_weight",
    "input_gate/bias": "rg_lru.input_gate_bias",
}
_TIME_MIXING = {
    "k": "key",
    "v": "value",
    "receptance": "receptance",
    "out": "output",
    "log_decay": "time_decay",
    "first": "time_first",
    "k_mix": "time_mix_key",
    "v_mix": "time_mix_value",
    "receptance_mix": "time_mix_receptance",
}
_CHANNEL_MIXING = {
    "up": "key",
    "receptance": "receptance",
    "down": "value",
    "up_mix": "time_mix_key",
    "receptance_mix": "time_mix_receptance",
}
_DELTA = {
    **dict.fromkeys(("q", "k", "v", "gate"), "in_proj_qkvz"),
    **dict.fromkeys(("write", "step"), "in_proj_ba"),
    "out": "out_proj",
    "conv": "conv1d",
    "log_decay": "A_log",
    "step_bias": "dt_bias",
    "norm/scale": "norm.weight",
}


def _under(path: str, stem: str, parts: dict[str, str]) -> dict[str, str]:
    return {f"{path}/{part}": f"{stem}.{name}" for part, name in parts.items()}


RECURRENT_NAMES = {  # as `NAMES` of decoder_names.py
    "mamba": _MAMBA | _mamba("mixer"),
    "mamba2": _MAMBA | _mamba2("mixer"),
    "jamba": _HYBRID
    | _mamba("mamba")
    | {"mlp/router": "feed_forward.router"}
    | {
        f"mlp/experts/{x}": "feed_forward.experts.{}." + f"{x}_proj" for x in ("gate", "up", "down")
    },
    "falcon_h1": _HYBRID | _mamba2("mamba"),
    "recurrent_gemma": NAMES["llama"]
    | {"final_norm": "model.final_norm"}
    | {"attn_norm": "temporal_pre_norm", "mlp_norm": "channel_pre_norm"}
    | {f"attn/{x}": f"temporal_block.{x}_proj" for x in "qkv"}
    | {"attn/out": "temporal_block.o_proj"}
    | {f"mlp/{x}": f"mlp_block.{x}_proj" for x in ("gate", "up", "down")}
    | _under("mixer", "temporal_block", _RG_LRU),
    "rwkv": {
        "layer": "rwkv.blocks.{}.",
        "embed": "rwkv.embeddings",
        "embed_norm": "rwkv.blocks.0.pre_ln",
        "final_norm": "rwkv.ln_out",
        "head": "head",
        "attn_norm": "ln1",
        "mlp_norm": "ln2",
    }
    | _under("mixer", "attention", _TIME_MIXING)
    | _under("mlp", "feed_forward", _CHANNEL_MIXING),
    "lfm2": NAMES["llama"]
    | {"final_norm": "model.embedding_norm", "attn_norm": "operator_norm", "mlp_norm": "ffn_norm"}
    | {"attn/q_norm": "self_attn.q_layernorm", "attn/k_norm": "self_attn.k_layernorm"}
    | {"attn/out": "self_attn.out_proj"}
    | {"mlp/gate": "feed_forward.w1", "mlp/up": "feed_forward.w3", "mlp/down": "feed_forward.w2"}
    | {f"mixer/{x}": "conv.in_proj" for x in ("b", "c", "in")}
    | {"mixer/out": "conv.out_proj", "mixer/conv": "conv.conv"},
    "qwen3_next": NAMES["qwen_moe"]
    | {"attn/gate": "self_attn.q_proj"}
    | _under("mixer", "linear_attn", _DELTA),
}
