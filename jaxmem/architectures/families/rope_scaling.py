"""The rotary fields of a Config, from the config.json of transformers 4 or 5."""

import math
from typing import Any

import numpy as np

from ...io.json_fields import JsonFields

_LLAMA3 = (
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
)
_KINDS = ("default", "linear", "llama3", "dynamic", "yarn", "longrope", "su")


def read_rope(
    fields: JsonFields,
    head_dim: int,
    context: int,
    *,
    theta: str = "rope_theta",
    partial: str = "partial_rotary_factor",
    part: float | None = None,
    local_theta: float | None = None,
    growth: bool = False,
) -> dict[str, Any]:
    """The rotary fields of Config.

    transformers 5 writes them in `rope_parameters`, with one entry for each layer type if a model
    has several; transformers 4 writes `rope_theta` and `rope_scaling`.

    Args:
        fields: the whole config.json.
        head_dim: channels of a head.
        context: tokens that the model has positions for.
        theta: name of the rotary base in transformers 4.
        partial: name of the part of a head that is rotated, in transformers 4.
        part: that part where no field says it; None if the family rotates whole heads.
        local_theta: the base of local layers where no field says it; None if these have the same
            frequencies as others.
        growth: whether queries grow with their position.
    """
    rope = fields.object("rope_parameters")
    nested = "full_attention" in rope or "sliding_attention" in rope
    full = rope.object("full_attention") if nested else rope
    sliding = rope.object("sliding_attention")
    sliding.expect("rope_type", "default")
    scaling = fields.object("rope_scaling") if "rope_scaling" in fields else full
    kind = scaling.text("rope_type" if "rope_type" in scaling else "type", "default", _KINDS)
    scaling.expect("type", kind)
    full.expect("rope_type", kind)
    base = full.number("rope_theta", fields.number(theta, 10_000.0, above=0), above=0)
    rotated = _rotated(fields, (full, sliding, scaling), head_dim, partial, part)
    original = scaling.number("original_max_position_embeddings", context, above=0)
    original = int(fields.number("original_max_position_embeddings", original, above=0))
    separate = local_theta is not None or nested
    if local_theta is not None:
        local_theta = fields.number("rope_local_base_freq", local_theta, above=0)
    values = {
        "theta": base,
        "rotary_dim": 0 if rotated == head_dim else rotated,
        "local_theta": sliding.number("rope_theta", local_theta or base, above=0),
        "local_scaled": not separate and kind != "default",
    }
    if growth:
        growth_rate = scaling.number("llama_4_scaling_beta", 0.0)
        values |= {"query_growth": growth_rate, "original_context": original}
    match kind:
        case "linear":
            values["rope_scaling"] = (scaling.number("factor", above=0),)
        case "llama3":
            values["rope_scaling"] = tuple(scaling.number(name, above=0) for name in _LLAMA3)
        case "dynamic":
            factor = scaling.number("factor", above=0)
            more = {"rope_dynamic": factor, "original_context": context}
            values |= more | {"context": int(context * factor)}
        case "yarn":
            values |= yarn(scaling, rotated, base, context, original)
        case "longrope" | "su":
            values |= _longrope(scaling, context, original)
    return values


def _rotated(
    fields: JsonFields, parts: tuple[JsonFields, ...], head_dim: int, name: str, part: float | None
) -> int:
    """The channels of a head that are rotated."""
    if part is None:
        for each in (fields, *parts):
            each.expect("partial_rotary_factor", 1.0)
        return head_dim
    share = fields.number(name, part, above=0)
    for entry in parts:
        share = entry.number("partial_rotary_factor", share, above=0)
    return int(head_dim * share)


def yarn(
    scaling: JsonFields, rotated: int, theta: float, context: int, original: int
) -> dict[str, Any]:
    """YaRN (Peng et al., 2023): slow channels are divided by the factor, fast ones are not."""
    factor = scaling.number("factor", context / original, above=0)
    fast = scaling.number("beta_fast", 32.0, above=0)
    slow = scaling.number("beta_slow", 1.0, above=0)
    scaling.ignore("max_position_embeddings")

    def channel(turns: float) -> float:
        """The channel that turns so often in the original context."""
        return rotated * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = channel(fast), channel(slow)
    if scaling.boolean("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotated - 1)
    slowness = (np.arange(rotated // 2) - low) / (high - low if high > low else 0.001)
    slowness = np.clip(slowness, 0, 1)
    divisors = 1 / (slowness / factor + 1 - slowness)
    magnitude = scaling.number("attention_factor", None, above=0)
    scales = [scaling.number(name, 0.0) for name in ("mscale", "mscale_all_dim")]
    if magnitude is None:
        first, second = (yarn_length(factor, scale) for scale in scales)
        magnitude = first / second if all(scales) else yarn_length(factor)
    return {"rope_factors": tuple(map(float, divisors)), "rope_magnitude": magnitude}


def yarn_length(factor: float, scale: float = 1.0) -> float:
    """What YaRN multiplies queries and keys by for a text that is `factor` times as long.

    Example:
        >>> round(yarn_length(4.0), 4), yarn_length(0.5)
        (1.1386, 1.0)
    """
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def _longrope(scaling: JsonFields, context: int, original: int) -> dict[str, Any]:
    """LongRoPE (Ding et al., 2024): divisors for short texts, and others for long ones."""
    short = scaling.numbers("short_factor", above=0)
    long = scaling.numbers("long_factor", above=0)
    for name, divisors in (("short_factor", short), ("long_factor", long)):
        if not divisors:
            scaling.refuse(name, "a list of numbers")
    factor = scaling.number("factor", context / original, above=0)
    usual = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    magnitude = scaling.number("attention_factor", usual, above=0)
    magnitude = scaling.number("short_mscale", magnitude, above=0)  # PhiMoE's name of it
    if scaling.number("long_mscale", magnitude, above=0) != magnitude:
        scaling.refuse("long_mscale", f"{magnitude}, which short texts have")
    values = {"rope_factors": short, "rope_magnitude": magnitude}
    if long != short:
        values |= {"rope_long_factors": long, "original_context": original}
    return values
