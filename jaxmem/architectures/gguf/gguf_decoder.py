"""A GGUF file as a decoder: the fields of its Config, and the tensors of its parameters."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from ...formats import gguf_fields
from ...formats.gguf import Gguf
from ...formats.gguf_end_tokens import end_tokens, token_id
from ...formats.rope_order import halves
from ...io.json_fields import JsonFields
from ..configs.decoder_config import Config
from ..weights.decoder_weights import weights as checkpoint_weights
from ..weights.weight_map import WeightMap
from .gguf_architectures import ARCHITECTURES, Architecture
from .gguf_mixture import read_latent, read_latent_magnitude, read_mixture
from .gguf_rope import FACTORS, LONG, SHORT, read_rope

# Fields that do not change what a model computes.
_HARMLESS = "|".join(
    (
        r"vocab_size|tensor_data_layout|attention\.layer_norm(_rms)?_epsilon",
        r"use_parallel_residual|rope\.scaling\.(finetuned|original_context_length|yarn_.*)",
    )
)
_TENSOR_OF = {  # a field of Config: the tensors whose presence in the first layer makes it true
    "qkv_bias": ("blk.0.attn_q.bias", "blk.0.attn_qkv.bias"),
    "out_bias": ("blk.0.attn_output.bias",),
    "mlp_bias": ("blk.0.ffn_up.bias",),
    "qk_norm": ("blk.0.attn_q_norm.weight",),
}
_FACTORS_OF_ONE = ("logit_scale", "residual_scale", "embedding_scale")
_TABLES = (FACTORS, SHORT, LONG)


def config(file: Gguf) -> Config:
    """The configuration that a file describes.

    Every field of the file's architecture is read, known not to change the function, or refused.

    Raises:
        ValueError: A field is missing, has a value of the wrong type, or asks for something that
            the model does not compute; the message names the file and the field.
    """
    name = gguf_fields.architecture(file, ARCHITECTURES)
    arch, fields = ARCHITECTURES[name], gguf_fields.architecture_fields(file, name)
    vocab, layers = gguf_fields.vocabulary_size(file), gguf_fields.layer_count(file, fields)
    width, heads = fields.integer("embedding_length"), fields.integer("attention.head_count")
    values = {"tensor_names": arch.hf} | arch.says | _of_tensors(file, fields, name, layers)
    kind = "layer_norm" if values.get("norm") == "layer" else "layer_norm_rms"
    values |= {
        "vocab": vocab,
        "width": width,
        "ffn": fields.integer("feed_forward_length"),
        "layers": layers,
        "heads": heads,
        "context": fields.integer("context_length"),
        "eps": fields.number(f"attention.{kind}_epsilon", above=0),
        "bos": token_id(file, "tokenizer.ggml.bos_token_id", vocab),
        "eos": tuple(end_tokens(file, vocab)),
    }
    fields.expect("attention.causal", True)
    fields.expect("rope.scaling.finetuned", *((True,) if name == "granite" else (False, True)))
    corrected = any(name.endswith("exp_probs_b.bias") for name in file.tensors)
    mixture = read_mixture(fields, name, arch, layers, corrected)
    if mixture and arch.hf_moe:
        values["tensor_names"] = arch.hf_moe
    values |= mixture | _heads(fields, name, width, heads)
    if values.get("positions", "rotary") == "rotary":
        rotated = values["latent"]["rope_dim"] if "latent" in values else values["head_dim"]
        values |= read_rope(file, fields, arch, rotated, values["context"])
        if "latent" in values:
            values |= {"rotary_dim": rotated, "rope_magnitude": read_latent_magnitude(fields)}
    if values.get("positions") == "alibi":
        values["alibi_max"] = fields.number("attention.max_alibi_bias", 8.0, above=0)
    values |= _scales(fields, arch, values) | _growth(fields, name, values)
    values |= _windows(fields, arch, values)
    fields.refuse_unread(_HARMLESS)
    try:
        return Config(**values)
    except ValueError as error:
        raise ValueError(f"{file.path}: {error}") from error


def weights(config: Config, name: str, names: str = "") -> dict[str, WeightMap]:
    """The tensors of a GGUF file of the architecture `name` that each parameter is read from.

    `names` is the key of the tensors' names in `GGUF_NAMES`, by default the architecture's.

    Example:
        >>> sizes = dict(vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8)
        >>> weights(Config(**sizes), "llama")["layers/attn/q/kernel"].names
        ('blk.0.attn_q.weight', 'blk.1.attn_q.weight')
    """
    arch = ARCHITECTURES[name]
    names = names or tensor_names(config, arch)
    maps = checkpoint_weights(dataclasses.replace(config, tensor_names=names))
    for path, weight_map in maps.items():
        last = path.removesuffix("/kernel").removesuffix("/bias").rpartition("/")[2]
        if arch.pairs and "/attn/" in path and last in ("q", "k"):
            first = _Halves(config.heads if last == "q" else config.kv_heads)
        elif config.norm_offset and path.endswith("norm/scale"):
            first = _Less(config.norm_offset)
        else:
            continue
        maps[path] = dataclasses.replace(weight_map, fn=_Chained(first, weight_map.fn))
    return maps


def tensor_names(config: Config, arch: Architecture) -> str:
    """The key in `GGUF_NAMES` of the names that a file of this configuration has."""
    two_norms = config.parallel and not config.shared_norm and arch.hf == "falcon"
    return "gguf qkv attn_norm_2" if two_norms else arch.names


def weights_of_file(file: Gguf, config: Config) -> dict[str, WeightMap]:
    """The tensors of `file` that each parameter is read from.

    Raises:
        ValueError: The file has a tensor that no model of its architecture computes with here.
    """
    name = gguf_fields.architecture(file, ARCHITECTURES)
    names = tensor_names(config, ARCHITECTURES[name])
    fused = "blk.0.attn_qkv.weight" in file.tensors
    if fused != ("qkv" in names.split()):  # older converters wrote one tensor, newer ones three
        names = names.replace("gguf", "gguf qkv", 1) if fused else names.replace(" qkv", "")
    maps = weights(config, name, names)
    read = {tensor for weight_map in maps.values() for tensor in weight_map.names}
    others = [x for x in file.tensors if x not in read and x not in _TABLES]
    others = [x for x in others if not x.endswith("attn_rot_embd.weight")]
    if others:
        raise ValueError(
            f"{file.path} has {len(others)} tensors that a {name} does not compute with here, "
            f"such as {', '.join(others[:3])}"
        )
    return maps


def _of_tensors(file: Gguf, fields: JsonFields, name: str, layers: int) -> dict[str, Any]:
    """The fields of Config that tensors of the file decide; `name` is of its architecture."""
    arch = ARCHITECTURES[name]
    has = lambda *names: any(name in file.tensors for name in names)
    values: dict[str, Any] = {
        field: has(*tensors) for field, tensors in _TENSOR_OF.items() if field in arch.may
    }
    if layers < arch.qk_norm_layers:
        values.pop("qk_norm", None)
    if "tied" in arch.may:
        values["tied"] = not has("output.weight")
    if name == "gptneox":
        values["parallel"] = fields.boolean("use_parallel_residual", True)
    if name == "stablelm":
        values["parallel"] = values["shared_norm"] = not has("blk.0.ffn_norm.weight")
    if name == "falcon" and has("blk.0.attn_norm_2.weight"):
        values |= {"shared_norm": False, "tensor_names": "falcon_two_norms"}
    return values


def _heads(fields: JsonFields, name: str, width: int, heads: int) -> dict[str, Any]:
    """The sizes of heads."""
    if name == "deepseek2":
        return read_latent(fields, heads)
    head_dim = fields.integer("attention.key_length", max(width // heads, 1))
    fields.expect("attention.value_length", head_dim)
    kv_heads = fields.integer("attention.head_count_kv", heads)
    return {"kv_heads": kv_heads, "head_dim": head_dim}


def _scales(fields: JsonFields, arch: Architecture, values: dict[str, Any]) -> dict[str, Any]:
    """Factors and caps, of the file or of the architecture."""
    width, heads, head_dim = (values[x] for x in ("width", "heads", "head_dim"))
    scales: dict[str, Any] = {}
    if values.get("embed_scale") == "width":
        scales["embed_scale"] = float(width) ** 0.5
    if values.get("query_scale") == "head_dim":
        scales["query_scale"] = (
            width // heads if values["layers"] == arch.wide else head_dim
        ) ** -0.5
    for key, (field, usual) in arch.scales.items():
        number = fields.number(key, usual)
        if number:
            scales[field] = 1 / number if arch.divides and field == "logit_scale" else number
    for key in _FACTORS_OF_ONE:
        if key not in arch.scales:
            fields.expect(key, 1, 0)
    usual = scales.get("query_scale") or values.get("query_scale") or head_dim**-0.5
    scale = fields.number("attention.scale", 0.0)
    if scale and not np.isclose(scale, usual):
        fields.refuse("attention.scale", f"{usual}, which is what is computed here")
    return scales


def _growth(fields: JsonFields, name: str, values: dict[str, Any]) -> dict[str, Any]:
    """The growth of queries with their position."""
    growth = fields.number("attention.temperature_scale", 0.0) if name == "mistral3" else 0.0
    if not growth:
        return {}
    original = fields.integer("rope.scaling.original_context_length", values["context"])
    return {"query_growth": growth, "original_context": original}


def _windows(fields: JsonFields, arch: Architecture, values: dict[str, Any]) -> dict[str, Any]:
    """The layers that see a window, and those without rotary positions."""
    windows, layers, theta = arch.windows, values["layers"], values.get("theta", 10_000.0)
    found: dict[str, Any] = {"local_theta": theta}
    if isinstance(values.get("no_rope"), int):
        found["no_rope"] = tuple((i + 1) % values["no_rope"] == 0 for i in range(layers))
    if windows is None or windows.layers not in (0, layers):
        return found
    window = fields.integer("attention.sliding_window", windows.size, least=0)
    fields.ignore("attention.sliding_window_pattern")
    if not window:
        return found
    local = _pattern(fields, windows.period, layers)
    base = fields.number("rope.freq_base_swa", windows.theta or theta, above=0)
    found |= {"window": window, "local": local, "local_theta": base, "local_scaled": windows.scaled}
    if windows.rotated_only:
        found["no_rope"] = tuple(not x for x in local)
    return found


def _pattern(fields: JsonFields, period: int, layers: int) -> tuple[bool, ...]:
    """Whether each layer is local: a bool for each, or all but every n-th."""
    name = "attention.sliding_window_pattern"
    is_local = fields.data.get(name)
    if isinstance(is_local, list):
        if len(is_local) != layers or not all(isinstance(x, bool) for x in is_local):
            fields.refuse(name, f"a bool for each of {layers} layers")
        return tuple(is_local)
    period = fields.integer(name, period, least=0)
    return tuple(not period or (i + 1) % period > 0 for i in range(layers))


@dataclasses.dataclass(frozen=True)
class _Halves:
    """Rows of heads in the order that rotates half against half, from that of pairs."""

    heads: int

    def __call__(self, w: np.ndarray) -> np.ndarray:
        return w if len(w) % (2 * self.heads) else halves(w, self.heads)


@dataclasses.dataclass(frozen=True)
class _Less:
    """A gain without the `offset` that the file's has."""

    offset: float

    def __call__(self, w: np.ndarray) -> np.ndarray:
        return w - np.float32(self.offset)


@dataclasses.dataclass(frozen=True)
class _Chained:
    """`then` of what `first` makes of a tensor."""

    first: Callable[[np.ndarray], np.ndarray]
    then: Callable[[np.ndarray], np.ndarray]

    def __call__(self, w: np.ndarray) -> np.ndarray:
        return self.then(self.first(w))
