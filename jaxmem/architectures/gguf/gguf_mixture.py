"""Experts and multi-latent attention in a GGUF file: the fields that say them, read and written."""

import math
from typing import Any

from ...io.json_fields import JsonFields
from ..families.rope_scaling import yarn_length
from .gguf_architectures import Architecture

_GATES = {1: "softmax", 2: "sigmoid"}  # expert_gating_func
_OF_FFN = (
    "llama",
    "olmoe",
    "granitemoe",
)  # an expert has the neurons that feed_forward_length says


def read_mixture(
    fields: JsonFields, name: str, arch: Architecture, layers: int, corrected: bool
) -> dict[str, Any]:
    """The field `mixture` of Config, or {} without experts.

    Args:
        fields: those of the architecture, whose name is `name`.
        arch: what the name says.
        layers: of the model.
        corrected: whether the file has numbers that are added to the scores of experts.
    """
    if arch.mixture is None or not fields.integer("expert_count", 0, least=0):
        fields.expect("expert_count", 0)
        if arch.mixture is not None and name != "llama":
            fields.refuse("expert_count", "at least 1")
        return {}
    ffn, used = fields.integer("feed_forward_length"), fields.integer("expert_used_count")
    usual = ffn if name in _OF_FFN else max(ffn // used, 1)
    values = arch.mixture | {
        "experts": fields.integer("expert_count"),
        "per_token": used,
        "ffn": ffn if name in _OF_FFN else fields.integer("expert_feed_forward_length", usual),
        "scale": fields.number("expert_weights_scale", 0.0) or 1.0,  # 0 means 1
    }
    fields.ignore("expert_feed_forward_length")
    if name == "qwen2moe":
        values["shared_ffn"] = fields.integer("expert_shared_feed_forward_length", ffn)
    if name != "deepseek2":
        fields.expect("expert_weights_norm", values.get("renormalized", False))
        fields.expect("expert_gating_func", 1, 0)
        return {"mixture": values}
    first = fields.integer("leading_dense_block_count", 0, least=0)
    gate = fields.integer("expert_gating_func", 1, least=0) or 1
    if gate not in _GATES:
        fields.refuse("expert_gating_func", "1, a softmax, or 2, sigmoids")
    groups = fields.integer("expert_group_count", 0, least=0) or 1
    values |= {
        "shared_ffn": values["ffn"] * fields.integer("expert_shared_count", 0, least=0),
        "scores": _GATES[gate],
        "renormalized": fields.boolean("expert_weights_norm", False),
        "correction": corrected,
        "dense": tuple(i < first for i in range(layers)) if first else (),
        "groups": groups,
        "groups_per_token": fields.integer("expert_group_used_count", 0, least=0) or 1,
        "group_score": "top2" if groups > 1 or gate == 2 else "max",
    }
    return {"mixture": values}


def write_mixture(config: Any, name: str) -> dict[str, Any]:
    """The fields that `read_mixture` reads as the mixture of `config`."""
    m = config.mixture
    if m is None:
        return {}
    fields: dict[str, Any] = {"expert_count": m.experts, "expert_used_count": m.per_token}
    if name not in _OF_FFN:
        fields["expert_feed_forward_length"] = m.ffn
    if m.scale != 1:
        fields["expert_weights_scale"] = float(m.scale)
    if name == "qwen2moe":
        fields["expert_shared_feed_forward_length"] = m.shared_ffn
    if name != "deepseek2":
        return fields
    gates = {scores: gate for gate, scores in _GATES.items()}
    fields |= {
        "expert_shared_count": m.shared_ffn // m.ffn,
        "expert_weights_norm": m.renormalized,
        "leading_dense_block_count": sum(m.dense),
        "expert_gating_func": gates.get(m.scores, 0),
    }
    if m.groups > 1:
        fields |= {"expert_group_count": m.groups, "expert_group_used_count": m.groups_per_token}
    return fields


def read_latent(fields: JsonFields, heads: int) -> dict[str, Any]:
    """The sizes of multi-latent attention, and the factor of its scores.

    Files of before 2025 hold one tensor for keys and values, and no sizes of heads: they are
    refused.
    """
    rank = fields.integer("attention.kv_lora_rank")
    rotated = fields.integer("rope.dimension_count")
    head_dim = fields.integer("attention.key_length_mla")
    fields.expect("attention.head_count_kv", 1)
    fields.expect("attention.key_length", rank + rotated)
    fields.expect("attention.value_length", rank)
    if head_dim <= rotated:
        fields.refuse("attention.key_length_mla", f"more than {rotated}, the rotated channels")
    sizes = {
        "kv_rank": rank,
        "nope_dim": head_dim - rotated,
        "rope_dim": rotated,
        "value_dim": fields.integer("attention.value_length_mla"),
        "q_rank": fields.integer("attention.q_lora_rank", 0, least=0),
    }
    return {
        "latent": sizes,
        "head_dim": head_dim,
        "kv_heads": heads,
        "query_scale": head_dim**-0.5 * _yarn_growth(fields) ** 2,
    }


def read_latent_magnitude(fields: JsonFields) -> float:
    """What rotated queries and keys are multiplied by: YaRN's factor, where no field cancels it."""
    factor = _yarn_factor(fields)
    cancelled = "rope.scaling.yarn_log_multiplier" in fields
    return 1.0 if cancelled else yarn_length(factor)


def write_latent(config: Any) -> dict[str, Any]:
    """The fields that `read_latent` reads as those of `config`."""
    c, sizes = config, config.latent
    fields = {
        "attention.head_count_kv": 1,
        "attention.kv_lora_rank": sizes.kv_rank,
        "attention.q_lora_rank": sizes.q_rank,
        "attention.key_length": sizes.kv_rank + sizes.rope_dim,
        "attention.value_length": sizes.kv_rank,
        "attention.key_length_mla": c.head_dim,
        "attention.value_length_mla": sizes.value_dim,
        "rope.dimension_count": sizes.rope_dim,
    }
    if c.rope_factors:
        factor = max(c.rope_factors)
        growth = math.sqrt((c.query_scale or c.head_dim**-0.5) * math.sqrt(c.head_dim))
        fields["rope.scaling.yarn_log_multiplier"] = (growth - 1) / math.log(factor)
    return fields


def _yarn_factor(fields: JsonFields) -> float:
    """The factor of YaRN, or 1 without it."""
    is_yarn = fields.text("rope.scaling.type", "none") == "yarn"
    return fields.number("rope.scaling.factor", 1.0, above=0) if is_yarn else 1.0


def _yarn_growth(fields: JsonFields) -> float:
    """What YaRN multiplies queries and keys by, rotated or not."""
    # The field has a tenth of the scale, as llama.cpp's converter writes it.
    scale = 10 * fields.number("rope.scaling.yarn_log_multiplier", 0.0)
    return read_latent_magnitude(fields) * yarn_length(_yarn_factor(fields), scale)
