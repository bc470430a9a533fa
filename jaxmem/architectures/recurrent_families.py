"""What a config.json says of each family of decoders with recurrent layers."""

from typing import Any

from ..io.json_fields import JsonFields
from .config_sizes import MOST_LAYERS
from .recurrence import Recurrence

_NO_LIMIT = 2**20  # tokens; a model without positions has no length
_UNBOUNDED = ({"__float__": "Infinity"}, float("inf"))


def _alone(fields: JsonFields, recurrence: Recurrence) -> dict[str, Any]:
    """The fields of Config of a model whose layers are the recurrence only."""
    return {
        "vocab": fields.integer("vocab_size"),
        "width": fields.integer("hidden_size"),
        "layers": fields.integer("num_hidden_layers", most=MOST_LAYERS),
        **dict.fromkeys(("ffn", "heads", "kv_heads", "head_dim"), 0),
        "context": _NO_LIMIT,
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
    return _alone(
        fields,
        Recurrence(
            "mamba",
            channels,
            fields.integer("state_size", 16),
            step_rank=_step_rank(fields, "time_step_rank", width),
            **_scan_options(fields),
        ),
    )


def _mamba2(fields: JsonFields) -> dict[str, Any]:
    fields.ignore("chunk_size", "time_step_rank", "rms_norm", "norm_before_gate")
    heads, head_dim = fields.integer("num_heads", 128), fields.integer("head_dim", 64)
    if heads * head_dim != fields.integer("expand", 2) * fields.integer("hidden_size"):
        fields.refuse("num_heads", "heads that make expand * hidden_size channels")
    return _alone(
        fields,
        Recurrence(
            "mamba2",
            heads * head_dim,
            fields.integer("state_size", 128),
            heads,
            fields.integer("n_groups", 8),
            norm="gate_first",
            step_range=_step_range(fields),
            **_scan_options(fields),
        ),
    )


def _step_rank(fields: JsonFields, name: str, width: int) -> int:
    """The length of the vector that steps are made of; "auto" is a sixteenth of the width."""
    if fields.data.get(name, "auto") == "auto":
        fields.ignore(name)
        return -(-width // 16)
    return fields.integer(name)


def _step_range(fields: JsonFields) -> tuple[float, ...]:
    """The limits of steps; none if they are 0 and infinity, which some files write as an object."""
    limits = fields.data.get("time_step_limit")
    if limits in [[0, unbounded] for unbounded in _UNBOUNDED]:
        fields.ignore("time_step_limit")
        return ()
    limits = fields.numbers("time_step_limit")
    if len(limits) not in (0, 2):
        fields.refuse("time_step_limit", "two numbers, or 0 and infinity")
    return limits


RECURRENT_FAMILIES = {  # as `ROTARY_FAMILIES` of decoder_families.py
    "mamba": (_mamba, {"tie_word_embeddings": True}),
    "mamba2": (_mamba2, {}),
}
