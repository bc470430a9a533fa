"""GGUF files of GPT-2 and BERT as Hugging Face checkpoints: names of tensors, and config.json.

The change that llama.cpp's converter made to a tensor is undone by the weight map that reads it.
"""

import re
from collections.abc import Iterable

from ..core.warning import warn
from . import gguf_fields
from .gguf import Gguf
from .gguf_end_tokens import end_tokens, token_id

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
NAMES = {"gpt2": _GPT2, "bert": _BERT}
_NO_BIAS = ("token_embd", "position_embd", "token_types", "output")
_BERT_HEAD = r"cls(\.output)?\.(weight|bias)"


def config(file: Gguf) -> dict:
    """The configuration in the form of a Hugging Face checkpoint's config.json.

    Raises:
        ValueError: A field is missing, has a value of the wrong type, or asks for something that
            the model does not compute; the message names the file and the field.
    """
    arch = gguf_fields.architecture(file, NAMES)
    fields, vocab = gguf_fields.architecture_fields(file, arch), gguf_fields.vocabulary_size(file)
    width, layers = fields.integer("embedding_length"), gguf_fields.layer_count(file, fields)
    ends, heads = end_tokens(file, vocab), fields.integer("attention.head_count")
    common = {
        "model_type": arch,
        "vocab_size": vocab,
        "bos_token_id": token_id(file, "tokenizer.ggml.bos_token_id", vocab),
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
    }
    fields.expect("attention.causal", arch != "bert")
    fields.expect("attention.head_count_kv", heads)
    epsilon = fields.number("attention.layer_norm_epsilon", above=0)
    context = fields.integer("context_length")
    if arch == "gpt2":
        hf = common | {
            "n_embd": width,
            "n_layer": layers,
            "n_head": heads,
            "n_inner": fields.integer("feed_forward_length", 4 * width),
            "n_positions": context,
            "layer_norm_epsilon": epsilon,
            "tie_word_embeddings": "output.weight" not in file.tensors,
        }
    else:
        embedding = file.tensors["token_embd.weight"]
        hf = common | {
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "intermediate_size": fields.integer("feed_forward_length"),
            "max_position_embeddings": context,
            "layer_norm_eps": epsilon,
            "type_vocab_size": file.tensors.get("token_types.weight", embedding).shape[0],
        }
    fields.refuse_unread(r"vocab_size|pooling_type|attention\.layer_norm_rms_epsilon")
    return hf


def sources(file: Gguf) -> dict[str, str]:
    """The name of the tensor in the file for each name of a Hugging Face checkpoint.

    Raises:
        ValueError: The file has a tensor that no model of its architecture computes with here.
    """
    arch, names, others = gguf_fields.architecture(file, NAMES), {}, []
    for name in file.tensors:
        match = re.fullmatch(r"(blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
        part, suffix = (match[3], match[4]) if match else (None, None)
        stem = NAMES[arch].get(part, "")
        is_part = bool(stem) and ("{}" in stem) == bool(match[1])
        if is_part and (suffix == "weight" or part not in _NO_BIAS):
            names[f"{stem.format(match[2])}.{suffix}"] = name
        else:
            others.append(name)
    if arch == "bert" and others and all(re.fullmatch(_BERT_HEAD, name) for name in others):
        warn(f"{file.path} has a head, {others[0]}, which is left out")
    elif others:
        raise ValueError(
            f"{file.path} has {len(others)} tensors that a {arch} does not compute with here, "
            f"such as {', '.join(others[:3])}"
        )
    return names


def is_turned(file: Gguf, names: Iterable[str]) -> bool:
    """Whether the tensors `names` of the file are the transposes of a checkpoint's: of a GPT-2."""
    if file.fields["general.architecture"] != "gpt2":
        return False
    parts = (name.split(".")[-2] for name in names if len(file.tensors[name].shape) == 2)
    return any(part.startswith(("attn_", "ffn_")) for part in parts)
