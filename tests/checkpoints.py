"""One small random Llama, and writers of every format it can be loaded from."""

import json
import struct

import gguf
import numpy as np
import safetensors.numpy

D, FFN, LAYERS, HEADS, KV_HEADS, VOCAB, CONTEXT = 64, 96, 2, 4, 2, 320, 32
HF = {
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": D,
    "intermediate_size": FFN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LAYER = {  # Hugging Face's name: GGUF's, shape
    "input_layernorm": ("attn_norm", (D,)),
    "self_attn.q_proj": ("attn_q", (D, D)),
    "self_attn.k_proj": ("attn_k", (D // 2, D)),
    "self_attn.v_proj": ("attn_v", (D // 2, D)),
    "self_attn.o_proj": ("attn_output", (D, D)),
    "post_attention_layernorm": ("ffn_norm", (D,)),
    "mlp.gate_proj": ("ffn_gate", (FFN, D)),
    "mlp.down_proj": ("ffn_down", (D, FFN)),
    "mlp.up_proj": ("ffn_up", (FFN, D)),
}


def turned(name, w):
    """What llama.cpp's and llama2.c's exporters do to q and k."""
    heads = HEADS if "q_proj" in name else KV_HEADS if "k_proj" in name else None
    if heads is None:
        return w
    return w.reshape(heads, 2, -1, D).swapaxes(1, 2).reshape(w.shape)


def random_tensors():
    """A Llama's tensors under the names and in the order of a Hugging Face checkpoint."""
    rng = np.random.default_rng(0)
    shapes = {"model.embed_tokens.weight": (VOCAB, D), "model.norm.weight": (D,)}
    for i in range(LAYERS):
        shapes |= {f"model.layers.{i}.{name}.weight": s for name, (_, s) in LAYER.items()}
    return {name: rng.standard_normal(s).astype(np.float32) for name, s in shapes.items()}


def write_single(folder, tensors):
    (folder / "config.json").write_text(json.dumps(HF))
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    return folder / "model.safetensors"


def write_sharded(folder, tensors):
    (folder / "config.json").write_text(json.dumps(HF))
    names = list(tensors)
    where = {name: f"model-{i % 3}.safetensors" for i, name in enumerate(names)}
    for file in set(where.values()):
        part = {name: tensors[name] for name in names if where[name] == file}
        safetensors.numpy.save_file(part, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    return folder


def write_gguf(folder, tensors, kind=gguf.GGMLQuantizationType.F32, *, tokenizer=None):
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(D)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, value in (tokenizer or {}).items():
        add = writer.add_array if isinstance(value, list) else writer.add_string
        add(f"tokenizer.ggml.{name}", value)
    names = {"model.embed_tokens.weight": "token_embd", "model.norm.weight": "output_norm"}
    for i in range(LAYERS):
        names |= {f"model.layers.{i}.{n}.weight": f"blk.{i}.{g}" for n, (g, _) in LAYER.items()}
    for name, tensor in tensors.items():
        w = turned(name, tensor)
        as_is = kind == gguf.GGMLQuantizationType.F32 or w.ndim == 1
        data = w if as_is else gguf.quantize(w, kind)
        writer.add_tensor(f"{names[name]}.weight", data, raw_dtype=None if as_is else kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "model.gguf"


def write_llama2c(folder, tensors):
    path = folder / "model.bin"
    header = struct.pack("<7i", D, FFN, LAYERS, HEADS, KV_HEADS, VOCAB, CONTEXT)
    parts = [tensors["model.embed_tokens.weight"]]
    for name in LAYER:
        stack = [tensors[f"model.layers.{i}.{name}.weight"] for i in range(LAYERS)]
        parts += [turned(name, w) for w in stack]
    parts += [tensors["model.norm.weight"], np.zeros((CONTEXT, D // HEADS), np.float32)]
    path.write_bytes(header + b"".join(p.tobytes() for p in parts))
    return path


WRITERS = [write_single, write_sharded, write_gguf, write_llama2c]
