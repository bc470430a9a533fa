"""The metadata of a decoder's GGUF file: its architecture, fields, divisors of rotary frequencies.

A configuration is written as the first architecture that reads
as the same configuration.
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from ..architectures import decoder
from ..architectures.gguf import gguf_decoder
from ..architectures.gguf.gguf_architectures import ARCHITECTURES, Architecture
from ..architectures.gguf.gguf_mixture import write_latent, write_mixture
from ..architectures.gguf.gguf_rope import write_rope
from ..core.lazy import Lazy
from ..formats import gguf

_ALIKE = ("rope_scaling", "rope_factors", "rope_long_factors", "local_theta", "local_scaled")
_FAR = 100  # differences: those of an architecture whose fields cannot say a configuration
_LONG = 2**30  # tokens: beyond every length at which frequencies change


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What a file says of a model: its architecture, fields, and tensors of divisors (n,) f32."""

    architecture: str
    fields: dict[str, Any]
    divisors: dict[str, np.ndarray]


def metadata(config: Any) -> Metadata:
    """The metadata that a reader of the file takes for `config`.

    Raises:
        ValueError: no architecture describes `config`; the message names the first field that
            differs in the one that comes closest.

    Example:
        >>> from jaxmem.architectures.llama import Config
        >>> sizes = dict(vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8)
        >>> metadata(Config(**sizes)).architecture
        'llama'
        >>> metadata(Config(**sizes, qk_norm=True)).architecture
        'qwen3'
    """
    if config.recurrence:
        raise ValueError("a GGUF file of ours cannot say layers with a recurrence; use to_hf")
    possible = [x for x in ARCHITECTURES.items() if _may_be(config, *x)]
    possible.sort(key=lambda x: not _is_as_said(config, x[1]))
    candidates: list[tuple[int, int, str]] = []
    for name, arch in possible:
        divisors = write_rope(config, arch)[1] if config.positions == "rotary" else {}
        written = Metadata(name, fields(config, name, arch), divisors)
        differences = _differences(config, written) + _unlike(config, name, arch)
        if not differences:
            return written
        candidates.append((len(differences), -len(arch.says), differences[0]))
    if not candidates:
        kinds = f"a {config.norm} norm and {config.positions} positions"
        raise ValueError(f"a GGUF file cannot say {kinds}, with latent = {config.latent}")
    raise ValueError(f"a GGUF file cannot say {min(candidates)[-1]}")


def fields(config: Any, name: str, arch: Architecture) -> dict[str, Any]:
    """The fields of the header that describe `config` as the architecture `name`."""
    c, layer_norm = config, "layer_norm" if config.norm == "layer" else "layer_norm_rms"
    values: dict[str, Any] = {
        "context_length": c.context,
        "embedding_length": c.width,
        "block_count": c.layers,
        "feed_forward_length": c.ffn,
        "attention.head_count": c.heads,
        "attention.head_count_kv": c.kv_heads,
        "attention.key_length": c.head_dim,
        "attention.value_length": c.head_dim,
        f"attention.{layer_norm}_epsilon": float(c.eps),
        "vocab_size": c.vocab,
    }
    if c.positions == "rotary":
        values |= write_rope(c, arch)[0]
    if c.positions == "alibi":
        values["attention.max_alibi_bias"] = float(c.alibi_max)
    if c.latent:
        values |= write_latent(c)
    if name in ("gptneox", "stablelm"):
        values["use_parallel_residual"] = c.parallel
    for key, (field, _) in arch.scales.items():
        number = getattr(c, field)
        if number is not None:
            is_divisor = arch.divides and field == "logit_scale"
            values[key] = float(1 / number if is_divisor else number)
    if c.query_growth:
        values["attention.temperature_scale"] = float(c.query_growth)
        values["rope.scaling.original_context_length"] = c.original_context
    values |= write_mixture(c, name) | _windows(c, arch)
    general = {"general.architecture": name, "general.quantization_version": 2}
    return general | {f"{name}.{key}": value for key, value in values.items()}


def _windows(config: Any, arch: Architecture) -> dict[str, Any]:
    """The fields of windows; the pattern of layers only where it is not the architecture's."""
    c, windows = config, arch.windows
    if windows is None:
        return {}
    if not c.local:
        return {"attention.sliding_window": 0}
    values: dict[str, Any] = {"attention.sliding_window": c.window}
    usual = tuple(not windows.period or (i + 1) % windows.period > 0 for i in range(c.layers))
    if c.local != usual:
        values["attention.sliding_window_pattern"] = list(c.local)
    if c.local_theta != (windows.theta or c.theta) and not windows.one_base:
        values["rope.freq_base_swa"] = float(c.local_theta)
    return values


def _may_be(config: Any, name: str, arch: Architecture) -> bool:
    """Whether a file of the architecture `name` has the parts of a model that `config` has."""
    c, kinds = config, {"norm": "rms", "positions": "rotary"}
    if any(getattr(c, field) != arch.says.get(field, usual) for field, usual in kinds.items()):
        return False
    is_ignored = arch.windows is not None and arch.windows.ignored and c.tensor_names != arch.hf
    has_experts = c.mixture is not None
    return (
        bool(c.latent) == (name == "deepseek2")
        and not (c.local and is_ignored)
        and (name == "llama" or has_experts == (arch.mixture is not None))
    )


def _is_as_said(config: Any, arch: Architecture) -> bool:
    """Whether the fields that the architecture's name alone says as such are so in `config`."""
    said = {name: x for name, x in arch.says.items() if isinstance(x, bool)}
    return all(getattr(config, name) == value for name, value in said.items())


def _unlike(config: Any, name: str, arch: Architecture) -> list[str]:
    """What llama.cpp refuses in `config` as a model of the architecture `name`."""
    c, found = config, []
    if arch.whole and c.heads * c.head_dim != c.width:
        found.append(
            f"{c.heads} heads of {c.head_dim} as {name}, whose heads have width {c.width} together"
        )
    if name == "olmoe" and c.kv_heads != c.heads:
        found.append(f"kv_heads = {c.kv_heads} as {name}, which has {c.heads}, one for each head")
    return found


def _differences(config: Any, written: Metadata) -> list[str]:
    """Each field of `config` that a reader of the file takes otherwise, and as what."""
    tensors = {
        name: Lazy(x.shape, x.dtype, lambda _, x=x: x) for name, x in written.divisors.items()
    }
    zeros = Lazy((config.vocab, config.width), np.dtype("f4"), lambda _: None)
    for weight_map in gguf_decoder.weights(config, written.architecture).values():
        tensors |= dict.fromkeys(weight_map.names, zeros)
    try:
        read = gguf_decoder.config(gguf.Gguf(pathlib.Path("it"), written.fields, tensors))
    except ValueError as error:
        return [f"this configuration as {written.architecture}: {error}"] * _FAR
    ignored = {"bos", "eos", "tensor_names", "family"}
    if _same_positions(config, read):
        ignored.update(_ALIKE)
    pairs = {
        field.name: (getattr(config, field.name), getattr(read, field.name))
        for field in dataclasses.fields(config)
        if field.name not in ignored
    }
    usual = config.head_dim**-0.5
    pairs["query_scale"] = tuple(x or usual for x in pairs["query_scale"])
    differing = [(name, *pair) for name, pair in pairs.items() if not _equal(*pair)]
    return [f"{name} = {mine}; it would read as {theirs}" for name, mine, theirs in differing]


def _equal(a: Any, b: Any) -> bool:
    """Whether values of a field are equal in single precision."""
    if isinstance(a, float) and isinstance(b, float):
        return bool(np.isclose(a, b, rtol=1e-6, atol=0))
    return a == b


def _same_positions(config: Any, read: Any) -> bool:
    """Whether two configurations have the same rotary frequencies in short and long texts."""
    if config.positions != "rotary":
        return True
    for length in (0, _LONG):
        ours, theirs = (decoder.per_layer(c, length)["frequencies"] for c in (config, read))
        if ours.shape != theirs.shape or not np.allclose(ours, theirs, rtol=1e-5, atol=0):
            return False
    return True
