"""A GGUF file as a Hugging Face checkpoint: names of tensors, orders of rows, config.json.

The changes that llama.cpp's converter made are undone, so that one weight map reads both formats.
"""

import re
import warnings

import numpy as np

from ..core.lazy import Lazy
from ..io.json_fields import JsonFields
from .gguf import Gguf
from .rope_order import halves

_LLAMA = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "model.layers.{}.input_layernorm",
    "attn_q": "model.layers.{}.self_attn.q_proj",
    "attn_k": "model.layers.{}.self_attn.k_proj",
    "attn_v": "model.layers.{}.self_attn.v_proj",
    "attn_output": "model.layers.{}.self_attn.o_proj",
    "ffn_norm": "model.layers.{}.post_attention_layernorm",
    "ffn_gate": "model.layers.{}.mlp.gate_proj",
    "ffn_up": "model.layers.{}.mlp.up_proj",
    "ffn_down": "model.layers.{}.mlp.down_proj",
}
_QWEN3 = _LLAMA | {
    "attn_q_norm": "model.layers.{}.self_attn.q_norm",
    "attn_k_norm": "model.layers.{}.self_attn.k_norm",
}
_GEMMA3 = _QWEN3 | {
    "post_attention_norm": "model.layers.{}.post_attention_layernorm",
    "ffn_norm": "model.layers.{}.pre_feedforward_layernorm",
    "post_ffw_norm": "model.layers.{}.post_feedforward_layernorm",
}
_GPT2 = {
    "token_embd": "wte",
    "position_embd": "wpe",
    "output_norm": "ln_f",
    "output": "lm_head",
    "attn_norm": "h.{}.ln_1",
    "attn_qkv": "h.{}.attn.c_attn",
    "attn_output": "h.{}.attn.c_proj",
    "ffn_norm": "h.{}.ln_2",
    "ffn_up": "h.{}.mlp.c_fc",
    "ffn_down": "h.{}.mlp.c_proj",
}
_BERT = {
    "token_embd": "embeddings.word_embeddings",
    "position_embd": "embeddings.position_embeddings",
    "token_types": "embeddings.token_type_embeddings",
    "token_embd_norm": "embeddings.LayerNorm",
    "attn_q": "encoder.layer.{}.attention.self.query",
    "attn_k": "encoder.layer.{}.attention.self.key",
    "attn_v": "encoder.layer.{}.attention.self.value",
    "attn_output": "encoder.layer.{}.attention.output.dense",
    "attn_output_norm": "encoder.layer.{}.attention.output.LayerNorm",
    "ffn_up": "encoder.layer.{}.intermediate.dense",
    "ffn_down": "encoder.layer.{}.output.dense",
    "layer_output_norm": "encoder.layer.{}.output.LayerNorm",
}
NAMES = {
    "llama": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _QWEN3,
    "gemma3": _GEMMA3,
    "gpt2": _GPT2,
    "bert": _BERT,
}
_EMBEDDINGS = ("token_embd", "position_embd", "token_types", "output")
_BIASED = {  # the parts that have a bias
    "qwen2": {"attn_q", "attn_k", "attn_v"},
    "gpt2": set(_GPT2).difference(_EMBEDDINGS),
    "bert": set(_BERT).difference(_EMBEDDINGS),
}
_NO_WEIGHTS = r"rope_freqs\.weight|blk\.\d+\.attn_rot_embd\.weight"  # tables of rotary positions
_BERT_HEAD = r"cls(\.output)?\.(weight|bias)"
_BY_LAYER = ("attention.head_count", "attention.head_count_kv", "feed_forward_length")


def architecture(file: Gguf) -> str:
    """The file's `general.architecture`.

    Raises:
        ValueError: No model of jaxmem has this architecture.
    """
    name = file.fields.get("general.architecture")
    if not isinstance(name, str) or name not in NAMES:
        raise ValueError(f"{file.path} is of architecture {name!r}, expected {', '.join(NAMES)}")
    return name


def architecture_fields(file: Gguf) -> JsonFields:
    """The fields of the file's architecture; one with an equal number for each layer is a number.

    Example:
        >>> import pathlib
        >>> from jaxmem.formats.gguf import Gguf
        >>> fields = {"general.architecture": "llama", "llama.attention.head_count": "many"}
        >>> architecture_fields(Gguf(pathlib.Path("a.gguf"), fields, {})).integer(
        ...     "attention.head_count"
        ... )
        Traceback (most recent call last):
        ValueError: a.gguf: llama.attention.head_count is 'many', expected an integer of at least 1
    """
    prefix = f"{architecture(file)}."
    values = {k.removeprefix(prefix): v for k, v in file.fields.items() if k.startswith(prefix)}
    for name in _BY_LAYER:
        numbers = values.get(name)
        if isinstance(numbers, list) and numbers and numbers == numbers[:1] * len(numbers):
            values[name] = numbers[0]
    return JsonFields(values, f"{file.path}: {prefix}")


def sources(file: Gguf) -> dict[str, str]:
    """The name of the tensor in the file for each name of a Hugging Face checkpoint.

    Raises:
        ValueError: The file has a tensor that no model of its architecture computes with here.
    """
    arch, names, others = architecture(file), {}, []
    for name in file.tensors:
        match = re.fullmatch(r"(blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
        part, suffix = (match[3], match[4]) if match else (None, None)
        stem = NAMES[arch].get(part, "")
        is_part = bool(stem) and ("{}" in stem) == bool(match[1])
        if is_part and (suffix == "weight" or part in _BIASED.get(arch, ())):
            names[f"{stem.format(match[2])}.{suffix}"] = name
        elif not re.fullmatch(_NO_WEIGHTS, name):
            others.append(name)
    if arch == "bert" and others and all(re.fullmatch(_BERT_HEAD, name) for name in others):
        warnings.warn(f"{file.path} has a head, {others[0]}, which is left out", stacklevel=2)
    elif others:
        raise ValueError(
            f"{file.path} has {len(others)} tensors that a {arch} does not compute with here, "
            f"such as {', '.join(others[:3])}"
        )
    return names


def tensors(file: Gguf, names: dict[str, str]) -> dict[str, Lazy]:
    """The tensors `names` with the names and the order of rows of a Hugging Face checkpoint."""
    return {hf_name: undone(file, name, file.tensors[name]) for hf_name, name in names.items()}


def undone(file: Gguf, name: str, tensor: Lazy) -> Lazy:
    """The tensor `name` as a checkpoint stores it: the converter's change is undone."""
    arch, part, shape = architecture(file), name.split(".")[-2], tensor.shape
    if arch == "llama" and part in ("attn_q", "attn_k"):
        fields = architecture_fields(file)
        heads = fields.integer("attention.head_count")
        if part == "attn_k":
            heads = fields.integer("attention.head_count_kv", heads)
        return tensor.map(lambda rows: halves(rows, heads), shape)
    if arch == "gemma3" and part.endswith("norm"):
        return tensor.map(lambda gain: gain - np.float32(1), shape)
    if arch == "gpt2" and part.startswith(("attn_", "ffn_")) and len(shape) == 2:
        return tensor.map(np.transpose, shape[::-1])
    return tensor
