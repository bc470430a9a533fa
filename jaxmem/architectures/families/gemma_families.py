"""What a config.json says of the Gemma families, in the words of Config."""

from typing import Any

from ...io.json_fields import JsonFields
from .hf_fields import all_but_each, layer_pattern, read_activation, read_rotary, read_windows

_TANH = "gelu_pytorch_tanh"


def _gemma(fields: JsonFields) -> dict:
    act = fields.text("hidden_act", _TANH)
    if act == "gelu":  # the first files say it, and mean the approximation by tanh
        act, activation = _TANH, {"gelu": True}
    else:
        activation = read_activation(fields, "hidden_act", _TANH)
    fields.expect("hidden_activation", None, act)  # transformers 4 reads it, 5 does not
    return _gemma_layers(fields) | activation


def _gemma_layers(fields: JsonFields, **rope: Any) -> dict:
    """What all Gemmas have, without the activation; `rope` are options of `read_rope`."""
    config = read_rotary(fields, **rope)
    fields.expect("use_bidirectional_attention", False)
    bias = fields.boolean("attention_bias", False)
    return (
        config
        | {"norm_offset": 1.0, "embed_scale": config["width"] ** 0.5}
        | {"qkv_bias": bias, "out_bias": bias}
    )


def _hidden_activation(fields: JsonFields) -> dict:
    fields.ignore("hidden_act")  # these Gemmas do not read it
    return read_activation(fields, "hidden_activation", _TANH)


def _gemma2(fields: JsonFields) -> dict:
    config = _gemma_layers(fields) | _hidden_activation(fields)
    windows = read_windows(fields, config["layers"], all_but_each(2))
    cap = lambda name: fields.number(name, None, above=0) or 0.0
    return config | windows | _query_scale(fields) | {
        "post_norms": True,
        "attention_softcap": cap("attn_logit_softcapping"),
        "logit_softcap": cap("final_logit_softcapping"),
    }  # fmt: skip


def _gemma3(fields: JsonFields) -> dict:
    config = _gemma_layers(fields, local_theta=10_000.0) | _hidden_activation(fields)
    windows = read_windows(fields, config["layers"], layer_pattern(fields, 6))
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        fields.expect(name, None)
    norms = {"qk_norm": True, "post_norms": True}
    return config | windows | _query_scale(fields) | norms


def _query_scale(fields: JsonFields) -> dict:
    scalar = fields.number("query_pre_attn_scalar", None, above=0)
    return {"query_scale": scalar**-0.5 if scalar else None}


_GEMMA = {
    "tie_word_embeddings": True,
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

# {model_type: (reader, transformers' defaults of fields that a config.json may leave out)}
GEMMA_FAMILIES = {
    "gemma": (_gemma, _GEMMA),
    "gemma2": (_gemma2, _GEMMA2),
    "gemma3_text": (_gemma3, _GEMMA3),
}
