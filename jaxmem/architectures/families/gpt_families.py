"""What a config.json says of decoders that are built like a GPT, in the words of Config."""

from ...io.json_fields import JsonFields
from .hf_fields import BIASED, GPT_NAMES, LAYER_NORM, read_activation, read_sizes
from .rope_scaling import read_rope

_PLAIN_MLP = {"gated": False}


def _gpt_neox(fields: JsonFields) -> dict:
    sizes = read_sizes(fields, eps="layer_norm_eps", kv_heads="", head_dim="")
    rope = read_rope(
        fields,
        sizes["head_dim"],
        sizes["context"],
        theta="rotary_emb_base",
        partial="rotary_pct",
        part=0.25,
    )
    bias = fields.boolean("attention_bias", True)
    return (
        sizes
        | rope
        | read_activation(fields, usual="gelu")
        | LAYER_NORM
        | _PLAIN_MLP
        | {"qkv_bias": bias, "out_bias": bias, "mlp_bias": True}
        | {"parallel": fields.boolean("use_parallel_residual", True)}
    )


def _gptj(fields: JsonFields) -> dict:
    fields.expect("rotary", True)
    fields.expect("scale_attn_weights", True)
    norms = LAYER_NORM | _PLAIN_MLP | {"parallel": True, "shared_norm": True}
    rope = {"rotary_dim": fields.integer("rotary_dim"), "interleaved": True}
    config = read_sizes(fields, GPT_NAMES) | norms | rope
    act = read_activation(fields, "activation_function", "gelu_new")
    return config | act | {"mlp_bias": True, "head_bias": True}


def _gpt_neo(fields: JsonFields) -> dict:
    names = {"layers": "num_layers", "heads": "num_heads", "context": "max_position_embeddings"}
    names |= {"width": "hidden_size", "ffn": "intermediate_size"}
    config = read_sizes(fields, GPT_NAMES, **names)
    unrolled = _unrolled(fields)
    types = fields.texts("attention_layers") or unrolled
    if len(types) != config["layers"] or not set(types) <= {"global", "local"}:
        fields.refuse("attention_types", f"global or local for each of {config['layers']} layers")
    local = tuple(x == "local" for x in types)
    windows = {"local": local, "window": fields.integer("window_size", 256)}
    act = read_activation(fields, "activation_function", "gelu_new")
    biases = {"out_bias": True, "mlp_bias": True, "query_scale": 1.0, "positions": "learned"}
    return config | act | LAYER_NORM | _PLAIN_MLP | biases | (windows if any(local) else {})


def _unrolled(fields: JsonFields) -> list[str]:
    """The kinds of attention [[[kinds], repeats], ...] of GPT-Neo, as one list."""
    types: list[str] = []
    entries = fields.data.get("attention_types")
    fields.ignore("attention_types")
    for entry in entries if isinstance(entries, list) else ():
        match entry:
            case [[*kinds], int(repeats)] if 0 < repeats < 1000:
                types += [*map(str, kinds)] * repeats
            case _:
                fields.refuse("attention_types", "a list of [[kinds], repeats]")
    return types


def _gpt_bigcode(fields: JsonFields) -> dict:
    config = read_sizes(fields, GPT_NAMES)
    one = fields.boolean("multi_query", True)
    fields.ignore("num_key_value_heads", "attention_softmax_in_fp32")
    fields.ignore("scale_attention_softmax_in_fp32", "inference_runner", "pad_key_length")
    fields.ignore("pre_allocate_kv_cache", "validate_runner_input", "max_batch_size")
    scaled = fields.boolean("scale_attn_weights", True)
    return (
        config
        | read_activation(fields, "activation_function", "gelu_pytorch_tanh")
        | LAYER_NORM
        | BIASED
        | _PLAIN_MLP
        | {"kv_heads": 1 if one else config["heads"], "positions": "learned"}
        | {"query_scale": None if scaled else 1.0}
    )


def _bloom(fields: JsonFields) -> dict:
    names = {"width": "n_embed" if "n_embed" in fields else "hidden_size", "ffn": ""}
    names |= {"context": "seq_length"}
    names |= {"heads": "num_attention_heads"} if "num_attention_heads" in fields else {}
    config = read_sizes(fields, GPT_NAMES, **names)
    fields.expect("apply_residual_connection_post_layernorm", False)
    fields.ignore("slow_but_exact", "attention_softmax_in_fp32", "masked_softmax_fusion")
    fields.ignore("bias_dropout_fusion", "offset_alibi", "skip_bias_add", "unk_token_id")
    fields.ignore("hidden_size", "n_inner")
    return config | LAYER_NORM | BIASED | _PLAIN_MLP | {
        "positions": "alibi",
        "embed_norm": True,
        "gelu": True,
    }  # fmt: skip


def _mpt(fields: JsonFields) -> dict:
    names = {"width": "d_model", "layers": "n_layers", "heads": "n_heads", "ffn": ""}
    config = read_sizes(fields, GPT_NAMES, **names, context="max_seq_len")
    fields.expect("expansion_ratio", 4)
    fields.expect("no_bias", True)
    fields.expect("embedding_fraction", 1.0)
    fields.expect("logit_scale", None)
    fields.expect("norm_type", "low_precision_layernorm", "layernorm")  # not an RMS norm
    fields.ignore("learned_pos_emb", "init_device", "verbose", "init_config")
    attn = fields.object("attn_config")
    attn.expect("alibi", True)
    for name in ("qk_ln", "prefix_lm", "attn_uses_sequence_id"):
        attn.expect(name, False)
    attn.expect("attn_type", "multihead_attention")
    attn.ignore(*(name for name in attn.data if name not in _MPT_ATTENTION))
    return config | LAYER_NORM | _PLAIN_MLP | {
        "norm_bias": False,
        "positions": "alibi",
        "alibi_max": float(attn.number("alibi_bias_max", 8, above=0)),
        "activation": "gelu",
        "clip_qkv": attn.number("clip_qkv", None, above=0) or 0.0,
        "query_scale": attn.number("softmax_scale", None, above=0),
    }  # fmt: skip


_MPT_ATTENTION = ("alibi", "alibi_bias_max", "attn_type", "clip_qkv", "prefix_lm", "qk_ln")
_MPT_ATTENTION += ("attn_uses_sequence_id", "softmax_scale")


def _opt(fields: JsonFields) -> dict:
    config = read_sizes(fields, ffn="ffn_dim", kv_heads="", head_dim="", eps="layer_norm_eps")
    before = fields.boolean("do_layer_norm_before", True)
    norms = {} if before else {"pre_norms": False, "sum_norms": True}
    final = before and not fields.boolean("_remove_final_layer_norm", False)
    embed = fields.integer("word_embed_proj_dim", config["width"])
    embed = 0 if embed == config["width"] else embed
    if not (final or embed):
        fields.refuse("word_embed_proj_dim", "another width where there is no final norm")
    fields.ignore("layerdrop", "init_std")
    bias = fields.boolean("enable_bias", True)
    gain = fields.boolean("layer_norm_elementwise_affine", True)
    return (
        config
        | read_activation(fields, "activation_function", "relu")
        | _PLAIN_MLP
        | {"norm": "layer", "norm_gain": gain, "norm_bias": gain}
        | norms
        | {"final_norm": final, "embed_width": embed}
        | {"qkv_bias": bias, "out_bias": bias, "mlp_bias": bias}
        | {"positions": "learned", "position_offset": 2}
    )


def _falcon(fields: JsonFields) -> dict:
    names = {"ffn": "ffn_hidden_size", "kv_heads": "", "head_dim": "", "eps": "layer_norm_epsilon"}
    config = read_sizes(fields, usual_ffn=True, **names)
    new = fields.boolean("new_decoder_architecture", False)
    one = fields.boolean("multi_query", True) and not new
    kv_heads = fields.integer("num_kv_heads", config["heads"])
    parallel = fields.boolean("parallel_attn", True)
    if new and not parallel:
        fields.refuse("parallel_attn", "true with new_decoder_architecture")
    norms = fields.integer("num_ln_in_parallel_attn", 2 if new else 1)
    if norms > (2 if new else 1):
        fields.refuse("num_ln_in_parallel_attn", "1, or 2 with new_decoder_architecture")
    bias = fields.boolean("bias", False)
    positions = read_rope(fields, config["head_dim"], config["context"])
    if fields.boolean("alibi", False):
        positions = {"positions": "alibi", "alibi_scaled": True}
    return (
        config
        | positions
        | read_activation(fields, "activation", "gelu")
        | LAYER_NORM
        | _PLAIN_MLP
        | {"qkv_bias": bias, "out_bias": bias, "mlp_bias": bias}
        | {"kv_heads": 1 if one else kv_heads}
        | {"parallel": parallel, "shared_norm": parallel and norms == 1}
        | {"tensor_names": "falcon_two_norms" if parallel and norms == 2 else "falcon"}
    )


_TIED = {"tie_word_embeddings": True}
_EPS = {"layer_norm_epsilon": 1e-5}

# {model_type: (reader, transformers' defaults of fields that a config.json may leave out)}
GPT_FAMILIES = {
    "gpt_neox": (_gpt_neox, {"layer_norm_eps": 1e-5}),
    "gptj": (_gptj, _EPS | {"rotary_dim": 64, "n_positions": 2048}),
    "codegen": (_gptj, _EPS | {"rotary_dim": 64, "n_positions": 2048}),
    "gpt_neo": (_gpt_neo, _TIED | _EPS),
    "gpt_bigcode": (_gpt_bigcode, _TIED | _EPS | {"n_positions": 1024}),
    "bloom": (_bloom, _TIED | _EPS),
    "mpt": (_mpt, _TIED | _EPS),
    "opt": (_opt, _TIED | {"layer_norm_eps": 1e-5}),
    "falcon": (_falcon, _TIED | _EPS),
}
