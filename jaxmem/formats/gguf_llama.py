"""A GGUF file as a Hugging Face checkpoint: names of tensors, orders of rows, config.json.

The changes that llama.cpp's converter made are undone, so that one weight map reads both formats.
"""

import functools
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from ..core.lazy import Lazy
from .gguf import Gguf
from .gguf_end_tokens import end_tokens, token_id
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
    "attn_q_norm": "model.layers.{}.self_attn.q_norm",
    "attn_k_norm": "model.layers.{}.self_attn.k_norm",
    "ffn_norm": "model.layers.{}.post_attention_layernorm",
    "ffn_gate": "model.layers.{}.mlp.gate_proj",
    "ffn_up": "model.layers.{}.mlp.up_proj",
    "ffn_down": "model.layers.{}.mlp.down_proj",
}
_GEMMA3 = _LLAMA | {
    "post_attention_norm": "model.layers.{}.post_attention_layernorm",
    "ffn_norm": "model.layers.{}.pre_feedforward_layernorm",
    "post_ffw_norm": "model.layers.{}.post_feedforward_layernorm",
}
_GPT2 = {
    "token_embd": "wte",
    "position_embd": "wpe",
    "output_norm": "ln_f",
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
    "qwen3": _LLAMA,
    "gemma3": _GEMMA3,
    "gpt2": _GPT2,
    "bert": _BERT,
}


def architecture(file: Gguf) -> str:
    """The file's `general.architecture`.

    Raises:
        ValueError: No model of jaxmem has this architecture.
    """
    name = file.fields.get("general.architecture")
    if name not in NAMES:
        raise ValueError(f"{file.path} is of architecture {name!r}, expected {', '.join(NAMES)}")
    return name


def sources(file: Gguf) -> dict[str, str]:
    """The name of the tensor in the file for each name of a Hugging Face checkpoint."""
    arch, names = architecture(file), {}
    for name in file.tensors:
        match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
        if match and match[2] in NAMES[arch]:
            names[f"{NAMES[arch][match[2]].format(match[1])}.{match[3]}"] = name
    return names


def tensors(file: Gguf) -> dict[str, Lazy]:
    """The tensors with the names and the order of rows of a Hugging Face checkpoint."""
    names = sources(file)
    return {hf_name: undone(file, name, file.tensors[name]) for hf_name, name in names.items()}


def config(file: Gguf) -> dict:
    """The configuration in the form of a Hugging Face checkpoint's config.json.

    Raises:
        ValueError: A field is missing or differs between layers, or the rope scaling is neither
            linear nor that of Llama 3.
    """
    arch = architecture(file)
    get = functools.partial(_number, file)
    width, heads = get("embedding_length"), get("attention.head_count")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise ValueError(f"{file.path} has no tensor token_embd.weight")
    vocab = embedding.shape[0]
    ends = end_tokens(file, vocab)
    common = {
        "model_type": {"gemma3": "gemma3_text"}.get(arch, arch),
        "vocab_size": vocab,
        "bos_token_id": token_id(file, "tokenizer.ggml.bos_token_id", vocab),
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
    }
    if arch == "gpt2":
        return common | {
            "n_embd": width,
            "n_layer": get("block_count"),
            "n_head": heads,
            "n_inner": get("feed_forward_length", 4 * width),
            "n_positions": get("context_length"),
            "layer_norm_epsilon": get("attention.layer_norm_epsilon"),
        }
    common |= {
        "hidden_size": width,
        "num_hidden_layers": get("block_count"),
        "num_attention_heads": heads,
        "intermediate_size": get("feed_forward_length"),
        "max_position_embeddings": get("context_length"),
    }
    if arch == "bert":
        kinds = file.tensors.get("token_types.weight", embedding).shape[0]
        epsilon = get("attention.layer_norm_epsilon")
        return common | {"layer_norm_eps": epsilon, "type_vocab_size": kinds}
    common |= {
        "num_key_value_heads": get("attention.head_count_kv", heads),
        "head_dim": get("attention.key_length", get("rope.dimension_count", width // heads)),
        "rms_norm_eps": get("attention.layer_norm_rms_epsilon"),
        "rope_theta": get("rope.freq_base", 10000.0),
        "rope_scaling": _scaling(file, get),
        "attention_bias": arch == "llama" and "blk.0.attn_q.bias" in file.tensors,
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }
    if arch == "gemma3":
        is_27b = get("block_count") == 62  # the 27B model scales queries by width / heads
        common |= {
            "sliding_window": get("attention.sliding_window"),
            "query_pre_attn_scalar": width // heads if is_27b else common["head_dim"],
        }
    return common


def undone(file: Gguf, name: str, tensor: Lazy) -> Lazy:
    """The tensor `name` as a checkpoint stores it: the converter's change is undone."""
    arch, part, shape = architecture(file), name.split(".")[-2], tensor.shape
    if arch == "llama" and part in ("attn_q", "attn_k"):
        heads = _number(file, "attention.head_count")
        if part == "attn_k":
            heads = _number(file, "attention.head_count_kv", heads)
        return tensor.map(lambda rows: halves(rows, heads), shape)
    if arch == "gemma3" and part.endswith("norm"):
        return tensor.map(lambda gain: gain - np.float32(1), shape)
    if arch == "gpt2" and part.startswith(("attn_", "ffn_")) and len(shape) == 2:
        return tensor.map(np.transpose, shape[::-1])
    return tensor


def _number(file: Gguf, name: str, *default: Any) -> Any:
    """The number in a field of the architecture."""
    name = f"{architecture(file)}.{name}"
    value = file.fields.get(name, *default)
    if value is None or isinstance(value, list):
        raise ValueError(f"{file.path} has {name} = {value}, expected one number")
    return value


def _scaling(file: Gguf, get: Callable) -> dict | None:
    """The `rope_scaling` of a config.json; `get(name)` is a field of the architecture."""
    kind = get("rope.scaling.type", "none")
    if kind == "linear":
        return {"rope_type": "linear", "factor": get("rope.scaling.factor")}
    if kind != "none":
        raise ValueError(f"{file.path} scales its rope by {kind!r}, expected linear or llama3's")
    if "rope_freqs.weight" not in file.tensors:
        return None
    # Llama 3.1 and later: the file holds one factor per frequency; the largest determines them all.
    return {
        "rope_type": "llama3",
        "factor": float(file.tensors["rope_freqs.weight"].load().max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
