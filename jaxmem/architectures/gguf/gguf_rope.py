"""Rotary positions in a GGUF file: the fields and tensors that say them, read and written.

A file has the base, the number of rotated channels and one scaling: linear, YaRN (Peng et al.,
2023) or LongRoPE (Ding et al., 2024). Llama 3.1's scaling is a tensor of divisors.
"""

from typing import Any

import numpy as np

from ...formats.gguf import Gguf
from ...io.json_fields import JsonFields
from ..families.rope_scaling import yarn, yarn_length
from .gguf_architectures import Architecture

FACTORS = "rope_freqs.weight"
SHORT, LONG = "rope_factors_short.weight", "rope_factors_long.weight"
_LLAMA3 = (1.0, 4.0, 8192.0)  # low and high frequency factors, and original length of Llama 3.1
_KINDS = ("none", "linear", "yarn", "longrope")
_ORIGINAL = "rope.scaling.original_context_length"
_BETAS = {"beta_fast": "rope.scaling.yarn_beta_fast", "beta_slow": "rope.scaling.yarn_beta_slow"}


def read_rope(
    file: Gguf, fields: JsonFields, arch: Architecture, head_dim: int, context: int
) -> dict[str, Any]:
    """The rotary fields of Config.

    Args:
        file: whose tensors may hold divisors of the frequencies.
        fields: those of the file's architecture, `arch`.
        head_dim: channels of a head that may be rotated.
        context: tokens that the model has positions for.
    """
    rotated = fields.integer("rope.dimension_count", head_dim)
    if not arch.partial:
        fields.expect("rope.dimension_count", head_dim)
    theta = fields.number("rope.freq_base", 10_000.0, above=0)
    values = {"theta": theta, "rotary_dim": 0 if rotated == head_dim else rotated}
    # llama.cpp scales linearly by a factor without a type, and reads an old name of the factor.
    kind = fields.text("rope.scaling.type", "linear", among=_KINDS)
    factor = fields.number("rope.scaling.factor", fields.number("rope.scale_linear", 0.0))
    if factor < 0:
        fields.refuse("rope.scaling.factor", "a number of at least 0")
    factor = 1.0 if kind in ("none", "longrope") else factor or 1.0  # 0 means that there is none
    original = fields.integer(_ORIGINAL, 0, least=0) or context  # 0 means the same
    magnitude = fields.number("rope.scaling.attn_factor", 1.0) or 1.0
    if kind == "yarn":
        return values | _read_yarn(fields, (rotated, theta, context, original), magnitude)
    if kind == "longrope" or SHORT in file.tensors:
        return values | _read_longrope(file, rotated, original, magnitude)
    if magnitude != 1:
        fields.refuse("rope.scaling.attn_factor", "1 without YaRN and LongRoPE")
    if FACTORS in file.tensors:
        return values | _read_factors(file, rotated, theta, factor)
    return values | ({"rope_scaling": (factor,)} if factor != 1 else {})


def write_rope(config: Any, arch: Architecture) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The fields that `read_rope` reads as those of `config`, and the tensors of divisors (n,) f32.

    A scaling that the fields cannot say is left out.
    """
    c, divisors = config, lambda x: np.asarray(x, np.float32)
    rotated = c.rotary_dim or c.head_dim
    fields = {"rope.dimension_count": rotated, "rope.freq_base": float(c.theta)}
    if len(c.rope_scaling) == 1:
        return fields | _scaling("linear", float(c.rope_scaling[0])), {}
    if len(c.rope_scaling) == 4 and arch.factors:
        return fields, {FACTORS: llama3_factors(rotated, c.theta, c.rope_scaling)}
    if not c.rope_factors:
        return fields, {}
    if arch.hf == "phi3":
        fields |= {"rope.scaling.type": "longrope", _ORIGINAL: c.original_context or c.context}
        fields["rope.scaling.attn_factor"] = float(c.rope_magnitude)
        long = c.rope_long_factors or c.rope_factors
        return fields, {SHORT: divisors(c.rope_factors), LONG: divisors(long)}
    found = _find_yarn(c, rotated)
    if found:
        return fields | found, {}
    return fields, {FACTORS: divisors(c.rope_factors)} if arch.factors else {}


def llama3_factors(head_dim: int, theta: float, scaling: tuple[float, ...]) -> np.ndarray:
    """What divides each rotary frequency in Llama 3.1's scaling: (head_dim / 2,) f32.

    `scaling` is (factor, low, high, original length).

    Example:
        >>> llama3_factors(8, 5e5, (8.0, 1.0, 4.0, 8192.0))
        array([1.       , 1.       , 2.6945298, 8.       ], dtype=float32)
    """
    factor, low, high, original = scaling
    f = 1 / theta ** (np.arange(0, head_dim, 2) / head_dim)
    keep = np.clip((original * f / (2 * np.pi) - low) / (high - low), 0, 1)
    return (1 / (keep + (1 - keep) / factor)).astype(np.float32)


def _scaling(kind: str, factor: float) -> dict[str, Any]:
    """The fields of a scaling."""
    return {"rope.scaling.type": kind, "rope.scaling.factor": factor}


def _read_yarn(
    fields: JsonFields, sizes: tuple[int, float, int, int], magnitude: float
) -> dict[str, Any]:
    """YaRN's divisors and magnitude; `sizes` are those that `yarn` takes."""
    scaling = {"factor": fields.number("rope.scaling.factor", above=0)}
    scaling |= {name: fields.number(key, None, above=0) for name, key in _BETAS.items()}
    values = yarn(JsonFields(scaling, fields.prefix), *sizes)
    scale = fields.number("rope.scaling.yarn_log_multiplier", 0.0)
    values["rope_magnitude"] = magnitude * yarn_length(scaling["factor"])
    values["rope_magnitude"] /= yarn_length(scaling["factor"], scale) if scale else 1.0
    return values


def _read_longrope(file: Gguf, rotated: int, original: int, magnitude: float) -> dict[str, Any]:
    """LongRoPE's divisors for short and long texts."""
    short, long = (_divisors(file, name, rotated) for name in (SHORT, LONG))
    values = {"rope_factors": _numbers(short), "rope_magnitude": magnitude}
    if not np.array_equal(short, long):
        values |= {"rope_long_factors": _numbers(long), "original_context": original}
    return values


def _read_factors(file: Gguf, rotated: int, theta: float, factor: float) -> dict[str, Any]:
    """The divisors of a tensor, which may be those of Llama 3.1."""
    factors = _divisors(file, FACTORS, rotated)
    llama3 = (float(factors.max()), *_LLAMA3)
    if factor == 1 and np.allclose(factors, llama3_factors(rotated, theta, llama3), rtol=1e-5):
        return {"rope_scaling": llama3}
    return {"rope_factors": _numbers(factors * np.float32(factor))}


def _divisors(file: Gguf, name: str, rotated: int) -> np.ndarray:
    """The divisors (rotated / 2,) f32 in a tensor."""
    tensor = file.tensors.get(name)
    if tensor is None:
        raise ValueError(f"{file.path} has no tensor {name}, expected divisors of its frequencies")
    if tensor.shape != (rotated // 2,):
        raise ValueError(
            f"{file.path}: {name} has shape {tensor.shape}, expected ({rotated // 2},)"
        )
    factors = np.asarray(tensor.load(), np.float32)
    if not (np.isfinite(factors) & (factors > 0)).all():
        raise ValueError(f"{file.path}: {name} is {factors}, expected numbers above 0")
    return factors


def _numbers(divisors: np.ndarray) -> tuple[float, ...]:
    return tuple(map(float, divisors))


def _find_yarn(config: Any, rotated: int) -> dict[str, Any]:
    """The fields of a YaRN scaling that has the divisors of `config`; {} if none is found.

    The slowest channels are divided by the factor. The length of the first training, which says
    where the division begins, is tried: what `config` says, and powers of two.
    """
    c, factor = config, max(config.rope_factors)
    lengths = [c.original_context, round(c.context / factor), *(2**i for i in range(2, 21))]
    for length in filter(None, lengths):
        scaling = JsonFields({"factor": factor})
        divisors = yarn(scaling, rotated, c.theta, c.context, length)["rope_factors"]
        if np.allclose(divisors, c.rope_factors, rtol=1e-6, atol=0):
            fields = _scaling("yarn", float(factor)) | {_ORIGINAL: length}
            magnitude = float(c.rope_magnitude / yarn_length(factor))
            return fields | ({} if c.latent else {"rope.scaling.attn_factor": magnitude})
    return {}
