"""The config.json of an encoder of any family, as the fields of Config."""

from collections.abc import Callable
from typing import Any

from ...io.json_fields import JsonFields
from .hf_fields import NAMES, encoder_activation, read_windows
from .ignored_hf_options import MOST_LAYERS, refuse_unread_options
from .speech_families import SPEECH_FAMILIES
from .vision_families import VISION_FAMILIES

_NAMES = {name: NAMES[name] for name in ("vocab", "width", "ffn", "layers", "heads")}
_DISTILBERT_NAMES = _NAMES | {
    "width": "dim",
    "ffn": "hidden_dim",
    "layers": "n_layers",
    "heads": "n_heads",
}
_HEADS = {  # the end of the class in `architectures`: Config.head
    "ForMaskedLM": "masked_lm",
    "ForSequenceClassification": "sequence",
    "ForImageClassification": "sequence",
    "ForTokenClassification": "tokens",
    "ForCTC": "tokens",
    "ForQuestionAnswering": "span",
}


def from_hf(hf: dict) -> dict[str, Any]:
    """The fields of a Config from a checkpoint's `config.json`, of transformers 4 or 5.

    The class in `architectures` says which head there is; other classes load without one.

    Raises:
        ValueError: `hf` lacks a size, has a value of the wrong type, or has a model type or an
            option that encoder.py does not compute. Every option is read, known not to change the
            function, or refused.
    """
    fields = JsonFields(hf)
    kind = fields.text("model_type", among=ENCODER_FAMILIES)
    head = read_head(fields)
    config = ENCODER_FAMILIES[kind](fields, head)
    if head in ("tokens", "sequence"):
        config.setdefault("labels", read_labels(fields))
    refuse_unread_options(fields)
    return config


def read_head(fields: JsonFields) -> str:
    """Config.head of a checkpoint, "" where `architectures` names another class."""
    names = fields.texts("architectures")
    head = next((h for end, h in _HEADS.items() if names and names[0].endswith(end)), "")
    if head == "masked_lm":
        fields.expect("tie_word_embeddings", True)
    else:
        fields.ignore("tie_word_embeddings")
    return head


def read_labels(fields: JsonFields) -> int:
    """The number of labels, of which config.json holds the names or nothing."""
    fields.ignore("id2label")
    names = JsonFields(fields.data.get("id2label") or {}, "id2label.").data
    return len(names) or fields.integer("num_labels", fields.integer("_num_labels", 2))


def _sizes(fields: JsonFields, names: dict[str, str] = _NAMES) -> dict[str, Any]:
    """The sizes, and what every family must have as it is computed here."""
    fields.expect("is_decoder", False)
    fields.expect("add_cross_attention", False)
    sizes: dict[str, Any] = {
        field: fields.integer(name, **({"most": MOST_LAYERS} if field == "layers" else {}))
        for field, name in names.items()
    }
    if sizes["width"] % sizes["heads"]:
        fields.refuse(names["heads"], f"a divisor of {sizes['width']}")
    return sizes | {"context": fields.integer("max_position_embeddings", 512)}


def _bert(
    fields: JsonFields,
    head: str,
    activation: str = "gelu",
    positions: tuple[str, ...] = ("absolute",),
) -> dict[str, Any]:
    """A BERT, whose activation is `activation` if no field says it."""
    fields.expect("position_embedding_type", *positions)
    fields.expect("directionality", "bidi")
    config = _sizes(fields) | {
        "types": fields.integer("type_vocab_size", 2, least=0),
        "eps": fields.number("layer_norm_eps", 1e-12, above=0, below=1),
        "activation": encoder_activation(fields, "hidden_act", activation),
        "head": head,
    }
    before = {"masked_lm": config["activation"], "sequence": "tanh"}
    return config | {"head_activation": before.get(head, "")}


def _roberta(fields: JsonFields, head: str) -> dict[str, Any]:
    config = _bert(fields, head) | {"tensor_names": "roberta"} | _padded_positions(fields)
    return config | ({"head_activation": "gelu"} if head == "masked_lm" else {})


def _padded_positions(fields: JsonFields) -> dict[str, int]:
    """Positions that count from the row after the padding token's."""
    pad = fields.integer("pad_token_id", 1, least=0)
    rows = fields.integer("max_position_embeddings", 512)
    if rows < pad + 2:
        fields.refuse("max_position_embeddings", f"at least {pad + 2}, past the padding's row")
    return {"pad": pad, "context": rows - pad - 1}


def _electra(fields: JsonFields, head: str) -> dict[str, Any]:
    config = _bert(fields, head)
    width = fields.integer("embedding_size", 128)
    return config | {
        "tensor_names": "electra",
        "embed_width": 0 if width == config["width"] else width,
        "head_activation": "gelu" if head in ("masked_lm", "sequence") else "",
    }


def _distilbert(fields: JsonFields, head: str) -> dict[str, Any]:
    fields.ignore("sinusoidal_pos_embds", "tie_weights_")  # the table is in the checkpoint
    config = _sizes(fields, _DISTILBERT_NAMES)
    config["activation"] = encoder_activation(fields, "activation")
    before = {"masked_lm": config["activation"], "sequence": "relu"}
    return config | {
        "types": 0,
        "head": head,
        "head_activation": before.get(head, ""),
        "tensor_names": "distilbert",
    }


def _albert(fields: JsonFields, head: str) -> dict[str, Any]:
    fields.expect("num_hidden_groups", 1)
    fields.expect("inner_group_num", 1)
    config = _bert(fields, head, activation="gelu_new")
    width = fields.integer("embedding_size", 128)
    return config | {"tensor_names": "albert", "embed_width": width, "shared": True}


def _mpnet(fields: JsonFields, head: str) -> dict[str, Any]:
    fields.expect("pad_token_id", 1)
    fields.expect("relative_attention_num_buckets", 32)
    return _roberta(fields, head) | {"tensor_names": "mpnet", "types": 0, "buckets": 32}


def _esm(fields: JsonFields, head: str) -> dict[str, Any]:
    positions = fields.text("position_embedding_type", "absolute", ("absolute", "rotary"))
    fields.expect("is_folding_model", False)
    fields.ignore("vocab_list", "esmfold_config")
    config = _bert(fields, head, positions=("absolute", "rotary"))
    scaled = fields.boolean("token_dropout", False)
    config |= {"types": 0, "activation": "gelu", "tensor_names": "esm", "pre_norms": True}
    config |= {"embed_norm": fields.boolean("emb_layer_norm_before", False)}
    config |= {"mask_scale": fields.integer("mask_token_id", least=0) if scaled else None}
    config |= {"head_activation": "gelu"} if head == "masked_lm" else {}
    theta = fields.number("rope_theta", 1e4, above=0)
    if positions == "absolute":
        return config | _padded_positions(fields)
    return config | {"positions": "rotary", "theta": theta}


def _nomic_bert(fields: JsonFields, head: str) -> dict[str, Any]:
    config = _bert(fields, head, activation="silu")
    return config | {
        "head_dim": fields.integer("head_dim", config["width"] // config["heads"]),
        "positions": "rotary",
        "theta": _theta(fields.object("rope_parameters"), fields.number("rope_theta", 1e3)),
        "gated": True,
        "tensor_names": "nomic_bert",
        **dict.fromkeys(("qkv_bias", "out_bias", "mlp_bias"), False),
    }


def _deberta_v2(fields: JsonFields, head: str) -> dict[str, Any]:
    computed = {"relative_attention": True, "share_att_key": True, "norm_rel_ebd": "layer_norm"}
    for name, value in computed.items():
        if fields.data.get(name) != value:  # a missing field means another value
            fields.refuse(name, f"{value!r}, which is what is computed here")
    fields.ignore(*computed)
    fields.expect("conv_kernel_size", 0)
    fields.expect("legacy", True)
    fields.ignore("pos_att_type", "z_steps", "conv_act")
    kinds = fields.data.get("pos_att_type")
    if sorted(kinds.split("|") if isinstance(kinds, str) else kinds or ()) != ["c2p", "p2c"]:
        fields.refuse("pos_att_type", "c2p and p2c, which are computed here")
    config = _bert(fields, head)
    fields.expect("embedding_size", config["width"])
    fields.expect("pooler_hidden_size", config["width"])
    farthest = fields.integer("max_relative_positions", -1, least=-1)
    farthest = config["context"] if farthest < 1 else farthest
    span = fields.integer("position_buckets", -1, least=-1)
    before = encoder_activation(fields, "pooler_hidden_act")
    learned = fields.boolean("position_biased_input", True)
    return config | {
        "types": fields.integer("type_vocab_size", 0, least=0),
        "eps": fields.number("layer_norm_eps", 1e-7, above=0, below=1),
        "positions": "learned" if learned else "none",
        "span": span if span > 0 else farthest,
        "farthest": farthest if span > 0 else 0,
        "tensor_names": "deberta_v2",
        "head_activation": before if head == "sequence" else config["head_activation"],
    }


def _theta(rope: JsonFields, usual: float) -> float:
    """The rotary base of a config.json without scaling."""
    rope.expect("rope_type", "default")
    return rope.number("rope_theta", usual, above=0)


def _modernbert(fields: JsonFields, head: str) -> dict[str, Any]:
    fields.expect("decoder_bias", True)
    fields.ignore("sparse_prediction", "sparse_pred_ignore_index", "reference_compile")
    fields.ignore("initializer_cutoff_factor", "embedding_dropout")
    config = _sizes(fields)
    interval = fields.integer("global_attn_every_n_layers", 3)
    windows = read_windows(
        JsonFields(fields.data | {"sliding_window": fields.integer("local_attention", 128) // 2}),
        config["layers"],
        lambda i: i % interval > 0,
    )
    fields.ignore("layer_types", "sliding_window")
    rope = fields.object("rope_parameters")
    attention_bias = fields.boolean("attention_bias", False)
    return (
        config
        | windows
        | {
            "types": 0,
            "eps": fields.number("norm_eps", 1e-5, above=0, below=1),
            "positions": "rotary",
            "theta": _theta(
                rope.object("full_attention"), fields.number("global_rope_theta", 1.6e5)
            ),
            "local_theta": _theta(
                rope.object("sliding_attention"), fields.number("local_rope_theta", 1e4)
            ),
            "pre_norms": True,
            "bare_start": True,
            "norm_bias": fields.boolean("norm_bias", False),
            "qkv_bias": attention_bias,
            "out_bias": attention_bias,
            "mlp_bias": fields.boolean("mlp_bias", False),
            "gated": True,
            "activation": encoder_activation(fields, "hidden_activation"),
            "tensor_names": "modernbert",
        }
        | _modernbert_head(fields, head)
    )


def _modernbert_head(fields: JsonFields, head: str) -> dict[str, Any]:
    """The fields of the head, which is a linear, an activation and a norm before the last one."""
    mean = fields.text("classifier_pooling", "cls", among=("cls", "mean")) == "mean"
    bias = fields.boolean("classifier_bias", False)
    activation = encoder_activation(fields, "classifier_activation")
    if not head:
        return {}
    return {
        "head": head,
        "head_activation": activation,
        "head_norm": head != "masked_lm",
        "head_bias": bias,
        "head_mean": mean and head == "sequence",
    }


Reader = Callable[[JsonFields, str], dict[str, Any]]
ENCODER_FAMILIES: dict[str, Reader] = {
    "bert": _bert,
    **dict.fromkeys(("roberta", "xlm-roberta", "camembert"), _roberta),
    "electra": _electra,
    "distilbert": _distilbert,
    "albert": _albert,
    "mpnet": _mpnet,
    "esm": _esm,
    "nomic_bert": _nomic_bert,
    "modernbert": _modernbert,
    "deberta-v2": _deberta_v2,
    **VISION_FAMILIES,
    **SPEECH_FAMILIES,
}
