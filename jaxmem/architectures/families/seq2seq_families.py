"""The config.json of an encoder-decoder of any family, as the fields of Config."""

from collections.abc import Callable
from typing import Any

from ...io.json_fields import JsonFields
from .hf_fields import encoder_activation
from .ignored_hf_options import MOST_LAYERS, UNLIMITED, refuse_unread_options

CHOSEN = -1  # in a prefix: a token that the model chooses, such as the language of a sound
_T5_MLPS = {  # feed_forward_proj: (gated, activation)
    "relu": (False, "relu"),
    "gelu": (False, "gelu"),
    "gated-gelu": (True, "gelu_new"),
    "gated-silu": (True, "silu"),
}
# Defaults of generation, and options of older files that transformers does not read.
_HARMLESS = "|".join(
    (
        r"init_std|.*layerdrop|num_hidden_layers|output_past|n_positions|classif_dropout",
        r"normalize_(before|embedding)|add_(bias_logits|final_layer_norm)|layernorm_variant",
        r"(extra|static)_pos(ition)?_embeddings|do_blenderbot_90_layernorm|replacing_rate",
        r"force_bos_token_to_be_generated|save_step|decoder_vocab_size",
    )
)


def from_hf(hf: dict) -> dict[str, Any]:
    """The fields of a Config from a checkpoint's `config.json`, of transformers 4 or 5.

    Raises:
        ValueError: `hf` lacks a size, has a value of the wrong type, or has a model type or an
            option that seq2seq.py does not compute. Every option is read, known not to change the
            function, or refused.
    """
    kind = JsonFields(hf).text("model_type", among=SEQ2SEQ_FAMILIES)
    read, defaults = SEQ2SEQ_FAMILIES[kind]
    fields = JsonFields(defaults | {name: x for name, x in hf.items() if x is not None})
    fields.ignore("model_type")
    fields.expect("is_encoder_decoder", True)
    fields.expect("is_decoder", False)
    config = read(fields) | read_tokens(fields)
    refuse_unread_options(fields, _HARMLESS)
    return config


def read_tokens(fields: JsonFields) -> dict[str, Any]:
    """The tokens of an output, from a config.json or a generation_config.json; {} for none.

    Of `bad_words_ids` those of one token are suppressed.
    """
    config: dict[str, Any] = {}
    if "decoder_start_token_id" in fields:
        config["start"] = fields.integer("decoder_start_token_id", least=0)
    if "forced_bos_token_id" in fields:
        config["forced"] = (fields.integer("forced_bos_token_id", least=0),)
    if "eos_token_id" in fields:
        config["eos"] = fields.integers("eos_token_id")
    if "forced_decoder_ids" in fields or fields.boolean("is_multilingual", False):
        config["prefix"] = _read_prefix(fields)
    words = fields.data.get("bad_words_ids") or []
    if not isinstance(words, list) or not all(isinstance(word, list) for word in words):
        fields.refuse("bad_words_ids", "a list of lists of token ids")
    single = [word[0] for word in words if len(word) == 1 and isinstance(word[0], int)]
    suppressed = (*fields.integers("suppress_tokens"), *single)
    config["suppressed"] = tuple(i for i in suppressed if i >= 0)
    config["suppressed_first"] = fields.integers("begin_suppress_tokens")
    return {name: x for name, x in config.items() if x != ()}


def _read_prefix(fields: JsonFields) -> tuple[int, ...]:
    """The tokens of `forced_decoder_ids`, pairs of a position from 1 on and a token.

    A null token, a language, is `CHOSEN` by the model, and the text has no times. A multilingual
    file without pairs means a language and the task "transcribe".
    """
    pairs = fields.data.get("forced_decoder_ids")
    if pairs is None:
        pairs = [[1, None], [2, fields.object("task_to_id").integer("transcribe", least=0)]]
    are_pairs = isinstance(pairs, list) and all(isinstance(x, list) and len(x) == 2 for x in pairs)
    if not are_pairs or [position for position, _ in pairs] != [*range(1, len(pairs) + 1)]:
        fields.refuse("forced_decoder_ids", "pairs of a position, from 1 on, and a token")
    tokens = tuple(token for _, token in pairs)
    if not all(token is None or (isinstance(token, int) and token >= 0) for token in tokens):
        fields.refuse("forced_decoder_ids", "token ids of at least 0")
    if None not in tokens:
        return tokens
    last = fields.integer("no_timestamps_token_id", None, least=0)
    tokens += () if last is None or last in tokens else (last,)
    return tuple(CHOSEN if token is None else token for token in tokens)


def _t5(fields: JsonFields) -> dict[str, Any]:
    gated, activation = _T5_MLPS[fields.text("feed_forward_proj", among=_T5_MLPS)]
    fields.expect("dense_act_fn", activation)  # it and the next repeat feed_forward_proj
    fields.expect("is_gated_act", gated)
    layers = fields.integer("num_layers", most=MOST_LAYERS)
    width = fields.integer("d_model")
    says_tied = fields.boolean("tie_word_embeddings", True)  # only the checkpoint knows
    return {
        "vocab": fields.integer("vocab_size"),
        "width": width,
        "ffn": fields.integer("d_ff"),
        "layers": fields.integer("num_decoder_layers", layers, most=MOST_LAYERS),
        "encoder_layers": layers,
        "heads": fields.integer("num_heads"),
        "head_dim": fields.integer("d_kv", 64),
        "context": UNLIMITED,
        "eps": fields.number("layer_norm_epsilon", 1e-6, above=0, below=1),
        "positions": "relative",
        "buckets": fields.integer("relative_attention_num_buckets", 32),
        "farthest": fields.integer("relative_attention_max_distance", 128),
        "norm": "rms",
        "pre_norms": True,
        "final_norm": True,
        "query_scale": 1.0,
        "activation": encoder_activation(fields, "dense_act_fn", activation),
        "gated": gated,
        "head_scale": width**-0.5 if fields.boolean("scale_decoder_outputs", says_tied) else 1.0,
        "tensor_names": "t5_gated" if gated else "t5",
        **dict.fromkeys(("norm_bias", "qkv_bias", "out_bias", "mlp_bias"), False),
    }


def _mt5(fields: JsonFields) -> dict[str, Any]:
    return _t5(fields) | {"head_scale": 1.0}


def _bart(fields: JsonFields, context: str = "max_position_embeddings") -> dict[str, Any]:
    """A BART; `context` is the name of the number of positions."""
    fields.ignore("tie_word_embeddings")  # only the checkpoint knows
    width, stacks = fields.integer("d_model"), {}
    for prefix, stack in (("", "decoder"), ("encoder_", "encoder")):
        stacks[f"{prefix}layers"] = fields.integer(f"{stack}_layers", most=MOST_LAYERS)
        stacks[f"{prefix}ffn"] = fields.integer(f"{stack}_ffn_dim")
        stacks[f"{prefix}heads"] = fields.integer(f"{stack}_attention_heads")
        if width % stacks[f"{prefix}heads"]:
            fields.refuse(f"{stack}_attention_heads", f"a divisor of {width}")
    return stacks | {
        "vocab": fields.integer("vocab_size"),
        "width": width,
        "context": fields.integer(context),
        "start": fields.integer("bos_token_id", 0, least=0),
        "embed_scale": width**0.5 if fields.boolean("scale_embedding", False) else 1.0,
        "embed_norm": True,
        "position_offset": 2,
        "activation": encoder_activation(fields, "activation_function"),
        "logit_bias": True,
    }


def _whisper(fields: JsonFields) -> dict[str, Any]:
    fields.expect("use_weighted_layer_sum", False)
    fields.expect("scale_embedding", False)
    fields.ignore("apply_spec_augment", "median_filter_width", "classifier_proj_size")
    fields.ignore("mask_time_prob", "mask_time_length", "mask_time_min_masks")
    fields.ignore("mask_feature_prob", "mask_feature_length", "mask_feature_min_masks")
    return _bart(fields, "max_target_positions") | {
        "mels": fields.integer("num_mel_bins"),
        "encoder_context": fields.integer("max_source_positions"),
        "key_bias": False,
        "logit_bias": False,
        "tensor_names": "whisper",
        **_NORMS_FIRST,
        **_PLAIN_EMBEDDING,
    }


_NORMS_FIRST = {"pre_norms": True, "final_norm": True}
_PLAIN_EMBEDDING = {"embed_norm": False, "position_offset": 0}


def _mbart(fields: JsonFields) -> dict[str, Any]:
    return _bart(fields) | _NORMS_FIRST


def _blenderbot(fields: JsonFields) -> dict[str, Any]:
    return _mbart(fields) | _PLAIN_EMBEDDING


def _pegasus(fields: JsonFields) -> dict[str, Any]:
    return _blenderbot(fields) | {"positions": "sinusoidal"}


def _marian(fields: JsonFields) -> dict[str, Any]:
    fields.expect("share_encoder_decoder_embeddings", True)
    return _bart(fields) | _PLAIN_EMBEDDING | {"positions": "sinusoidal"}


def _m2m(fields: JsonFields) -> dict[str, Any]:
    pad = fields.integer("pad_token_id", 1, least=0)
    return _pegasus(fields) | {"pad": pad, "ends_at_slowest": True, "logit_bias": False}


Reader = Callable[[JsonFields], dict[str, Any]]
# {model_type: (its reader, transformers' defaults of fields that a config.json may leave out)}
SEQ2SEQ_FAMILIES: dict[str, tuple[Reader, dict[str, Any]]] = {
    "t5": (_t5, {"feed_forward_proj": "relu", "decoder_start_token_id": 0, "eos_token_id": 1}),
    "mt5": (_mt5, {"feed_forward_proj": "gated-gelu", "eos_token_id": 1}),
    "bart": (_bart, {"eos_token_id": 2, "decoder_start_token_id": 2}),
    "mbart": (_mbart, {"eos_token_id": 2}),
    "blenderbot": (_blenderbot, {"eos_token_id": 2, "decoder_start_token_id": 1}),
    "pegasus": (_pegasus, {"eos_token_id": 1, "decoder_start_token_id": 0}),
    "marian": (_marian, {"eos_token_id": 0, "decoder_start_token_id": 58_100}),
    "whisper": (_whisper, {"eos_token_id": 50_257, "decoder_start_token_id": 50_257}),
    "m2m_100": (
        _m2m,
        {"activation_function": "relu", "eos_token_id": 2, "decoder_start_token_id": 2},
    ),
}
