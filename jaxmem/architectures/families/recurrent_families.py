"""What a config.json says of each family of decoders with recurrent layers."""

from typing import Any

from ...io.json_fields import JsonFields
from .hf_fields import LAYER_NORM
from .ignored_hf_options import MOST_LAYERS, UNLIMITED

_UNBOUNDED = ({"__float__": "Infinity"}, float("inf"))


def _without_attention(fields: JsonFields, recurrence: dict[str, Any]) -> dict[str, Any]:
    """The fields of Config of a model without attention, and without a feed-forward part."""
    return {
        "vocab": fields.integer("vocab_size"),
        "width": fields.integer("hidden_size"),
        "layers": fields.integer("num_hidden_layers", most=MOST_LAYERS),
        **dict.fromkeys(("ffn", "heads", "kv_heads", "head_dim"), 0),
        "context": UNLIMITED,
        "eps": fields.number("layer_norm_epsilon", 1e-5, above=0, below=1),
        "positions": "none",
        "recurrence": recurrence,
    }


def _scan_options(fields: JsonFields) -> dict[str, Any]:
    """The options that Mamba 1 and 2 share; what only training or a kernel reads is harmless."""
    fields.expect("hidden_act", "silu")
    fields.ignore("time_step_min", "time_step_max", "time_step_floor", "time_step_scale")
    fields.ignore("time_step_init_scheme", "rescale_prenorm_residual", "residual_in_fp32")
    bias = fields.boolean("use_bias", False)
    return {
        "taps": fields.integer("conv_kernel", 4),
        "conv_bias": fields.boolean("use_conv_bias", True),
        "in_bias": bias,
        "out_bias": bias,
        "alone": True,
    }


def _mamba(fields: JsonFields) -> dict[str, Any]:
    fields.ignore("use_mambapy", "use_associative_scan", "d_model", "d_inner", "ssm_cfg", "n_layer")
    width = fields.integer("hidden_size")
    channels = fields.integer("expand", 2) * width
    fields.expect("intermediate_size", channels)
    return _without_attention(
        fields,
        dict(
            kind="mamba",
            channels=channels,
            state=fields.integer("state_size", 16),
            step_rank=step_rank(fields, "time_step_rank", width),
            **_scan_options(fields),
        ),
    )


def _mamba2(fields: JsonFields) -> dict[str, Any]:
    fields.ignore("chunk_size", "time_step_rank", "rms_norm", "norm_before_gate")
    heads, head_dim = fields.integer("num_heads", 128), fields.integer("head_dim", 64)
    if heads * head_dim != fields.integer("expand", 2) * fields.integer("hidden_size"):
        fields.refuse("num_heads", "heads that make expand * hidden_size channels")
    return _without_attention(
        fields,
        dict(
            kind="mamba2",
            channels=heads * head_dim,
            state=fields.integer("state_size", 128),
            heads=heads,
            groups=fields.integer("n_groups", 8),
            norm="gate_first",
            step_range=step_range(fields),
            **_scan_options(fields),
        ),
    )


def _rwkv(fields: JsonFields) -> dict[str, Any]:
    fields.ignore("rescale_every")  # halves what would leave the range of float16
    fields.expect("layer_norm_epsilon", 1e-5)  # of every norm but the last, which has this one
    width = fields.integer("hidden_size")
    recurrence = dict(kind="rwkv", channels=fields.integer("attention_hidden_size", width))
    return (
        _without_attention(fields, recurrence)
        | LAYER_NORM
        | {"ffn": fields.integer("intermediate_size", 4 * width), "gated": False}
        | {"embed_norm": True, "context": fields.integer("context_length", 1024)}
    )


def step_rank(fields: JsonFields, name: str, width: int) -> int:
    """The length of the vector that steps are made of; "auto" is a sixteenth of the width."""
    if fields.data.get(name, "auto") == "auto":
        fields.ignore(name)
        return -(-width // 16)
    return fields.integer(name)


def step_range(fields: JsonFields) -> tuple[float, ...]:
    """The limits of steps; none if they are 0 and infinity, which some files write as an object."""
    limits = fields.data.get("time_step_limit")
    if limits in [[0, unbounded] for unbounded in _UNBOUNDED]:
        fields.ignore("time_step_limit")
        return ()
    limits = fields.numbers("time_step_limit")
    if len(limits) not in (0, 2):
        fields.refuse("time_step_limit", "two numbers, or 0 and infinity")
    return limits


RECURRENT_FAMILIES = {  # the entries are those of `ROTARY_FAMILIES` in llama_like_families.py
    "mamba": (_mamba, {"tie_word_embeddings": True}),
    "mamba2": (_mamba2, {}),
    "rwkv": (_rwkv, {}),
}
