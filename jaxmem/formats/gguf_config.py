"""The fields of a GGUF file as the config.json of a Hugging Face checkpoint.

A field that llama.cpp computes with is read, or refused where it asks for something that the models
here do not compute.
"""

import re
from typing import Any

import numpy as np

from ..io.json_fields import JsonFields
from .gguf import Gguf
from .gguf_end_tokens import end_tokens, token_id
from .gguf_llama import architecture, architecture_fields

_LLAMA3 = (1.0, 4.0, 8192.0)  # low and high frequency factors, and original length of Llama 3.1
_FACTORS = "rope_freqs.weight"


def config(file: Gguf) -> dict:
    """The configuration in the form of a Hugging Face checkpoint's config.json.

    Raises:
        ValueError: A field is missing, has a value of the wrong type, or asks for something that
            the model does not compute; the message names the file and the field.
    """
    arch, fields = architecture(file), architecture_fields(file)
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ValueError(f"{file.path} has no matrix token_embd.weight")
    vocab, width = embedding.shape[0], fields.integer("embedding_length")
    heads, layers = fields.integer("attention.head_count"), _layers(file, fields)
    ends = end_tokens(file, vocab)
    common = {
        "model_type": {"gemma3": "gemma3_text"}.get(arch, arch),
        "vocab_size": vocab,
        "bos_token_id": token_id(file, "tokenizer.ggml.bos_token_id", vocab),
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
    }
    fields.expect("expert_count", 0)
    fields.expect("attention.causal", arch != "bert")
    if arch == "gpt2":
        return common | {
            "n_embd": width,
            "n_layer": layers,
            "n_head": heads,
            "n_inner": fields.integer("feed_forward_length", 4 * width),
            "n_positions": fields.integer("context_length"),
            "layer_norm_epsilon": fields.number("attention.layer_norm_epsilon", above=0),
            "tie_word_embeddings": "output.weight" not in file.tensors,
        }
    common |= {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": fields.integer("feed_forward_length"),
        "max_position_embeddings": fields.integer("context_length"),
    }
    if arch == "bert":
        kinds = file.tensors.get("token_types.weight", embedding).shape[0]
        epsilon = fields.number("attention.layer_norm_epsilon", above=0)
        return common | {"layer_norm_eps": epsilon, "type_vocab_size": kinds}
    return common | _llama(file, fields, arch, width, heads, layers)


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


def _layers(file: Gguf, fields: JsonFields) -> int:
    """The number of layers, for all of which the file has tensors."""
    layers = fields.integer("block_count")
    matches = (re.match(r"blk\.(\d{1,9})\.", name) for name in file.tensors)
    blocks = {int(match[1]) for match in matches if match}
    if len(blocks) != layers or max(blocks, default=-1) != layers - 1:
        missing = next((i for i in range(len(blocks) + 1) if i not in blocks), None)
        more = max(blocks, default=0) >= layers
        problem = f"tensors of block {max(blocks)}" if more else f"no tensors of block {missing}"
        fields.refuse("block_count", "the number of blocks with tensors", f"; it has {problem}")
    return layers


def _llama(
    file: Gguf, fields: JsonFields, arch: str, width: int, heads: int, layers: int
) -> dict[str, Any]:
    """The options of the Llama family."""
    rotated = fields.integer("rope.dimension_count", width // heads)
    head_dim = fields.integer("attention.key_length", rotated)
    fields.expect("rope.dimension_count", head_dim)
    fields.expect("attention.value_length", head_dim)
    for name in ("attention.clamp_kqv", "attention.max_alibi_bias", "attn_logit_softcapping"):
        fields.expect(name, 0)
    for name in ("logit_scale", "residual_scale", "embedding_scale", "rope.scaling.attn_factor"):
        fields.expect(name, 1, 0)
    fields.expect("final_logit_softcapping", 0)
    # The 27B model of Gemma 3 alone scales queries by width / heads, and no field says so.
    scalar = width // heads if arch == "gemma3" and layers == 62 else head_dim
    if not np.isclose(fields.number("attention.scale", 0.0) or scalar**-0.5, scalar**-0.5):
        fields.refuse("attention.scale", f"{scalar**-0.5}, which is what is computed here")
    theta = fields.number("rope.freq_base", 10_000.0, above=0)
    options = {
        "num_key_value_heads": fields.integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rms_norm_eps": fields.number("attention.layer_norm_rms_epsilon", above=0),
        "rope_theta": theta,
        "rope_scaling": _scaling(file, fields, head_dim, theta),
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }
    if arch != "gemma3":
        return options
    options["query_pre_attn_scalar"] = scalar
    options["sliding_window"] = fields.integer("attention.sliding_window")
    options["rope_local_base_freq"] = fields.number("rope.freq_base_swa", 10_000.0, above=0)
    pattern = "attention.sliding_window_pattern"
    is_local = fields.data.get(pattern)
    if isinstance(is_local, list):
        types = {True: "sliding_attention", False: "full_attention"}
        if len(is_local) != layers or not all(isinstance(x, bool) for x in is_local):
            fields.refuse(pattern, f"a bool for each of {layers} layers")
        return options | {"layer_types": [types[x] for x in is_local]}
    return options | {"sliding_window_pattern": fields.integer(pattern, 6)}


def _scaling(file: Gguf, fields: JsonFields, head_dim: int, theta: float) -> dict | None:
    """The `rope_scaling` of a config.json."""
    # llama.cpp scales linearly by a factor without a type, and reads an old name of the factor.
    kind = fields.text("rope.scaling.type", "linear", among=("none", "linear"))
    factor = fields.number("rope.scaling.factor", fields.number("rope.scale_linear", 0.0))
    if factor < 0:
        fields.refuse("rope.scaling.factor", "a number of at least 0")
    factor = factor or 1.0  # 0 means that there is none
    factor = 1.0 if kind == "none" else factor
    if _FACTORS not in file.tensors:
        return None if factor == 1 else {"rope_type": "linear", "factor": factor}
    if file.tensors[_FACTORS].shape != (head_dim // 2,):
        shape = file.tensors[_FACTORS].shape
        raise ValueError(f"{file.path}: {_FACTORS} has shape {shape}, expected ({head_dim // 2},)")
    factors = np.asarray(file.tensors[_FACTORS].load(), np.float32)
    if not (np.isfinite(factors) & (factors > 0)).all():
        raise ValueError(f"{file.path}: {_FACTORS} is {factors}, expected numbers above 0")
    llama3 = (float(factors.max()), *_LLAMA3)
    if factor == 1 and np.allclose(factors, llama3_factors(head_dim, theta, llama3), rtol=1e-5):
        names = ("factor", "low_freq_factor", "high_freq_factor")
        names += ("original_max_position_embeddings",)
        return {"rope_type": "llama3"} | dict(zip(names, llama3))
    values = [float(x) for x in factors * np.float32(factor)]
    both = {"short_factor": values, "long_factor": values}
    return {"rope_type": "longrope", "attention_factor": 1.0} | both
