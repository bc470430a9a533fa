"""llama2.c checkpoints (Karpathy, 2023): a header, then every weight in float32."""

import math
import pathlib

import numpy as np

from ..core.lazy import Lazy
from .byte_ranges import part, stored
from .rope_order import halves


def llama2c(path: pathlib.Path) -> tuple[dict, dict[str, Lazy]]:
    """The configuration, as a config.json would give it, and the tensors of a llama2.c file.

    Reference: llama2.c, its first file version: seven int32, then float32 tensors (Karpathy, 2023).

    Raises:
        ValueError: The file's length is not the one its header asks for.
    """
    size = path.stat().st_size
    if size < 28:
        raise ValueError(f"{path} is no llama2.c file: {size} bytes, expected a header of 28")
    d, ffn, layers, heads, kv_heads, vocab, length = part(path, 0, 7, np.dtype("<i4")).tolist()
    tied, vocab = vocab > 0, abs(vocab)  # the sign says whether a head follows
    if min(d, ffn, layers, heads, kv_heads, vocab, length) < 1 or d % heads or heads % kv_heads:
        raise ValueError(f"{path} is no llama2.c file: its header gives impossible sizes")
    head_dim = d // heads
    kv = kv_heads * head_dim
    block = "model.layers.{}."
    layout = [  # the order of tensors in the file: name, number of layers, shape
        ("model.embed_tokens.weight", 1, (vocab, d)),
        (block + "input_layernorm.weight", layers, (d,)),
        (block + "self_attn.q_proj.weight", layers, (d, d)),
        (block + "self_attn.k_proj.weight", layers, (kv, d)),
        (block + "self_attn.v_proj.weight", layers, (kv, d)),
        (block + "self_attn.o_proj.weight", layers, (d, d)),
        (block + "post_attention_layernorm.weight", layers, (d,)),
        (block + "mlp.gate_proj.weight", layers, (ffn, d)),
        (block + "mlp.down_proj.weight", layers, (d, ffn)),
        (block + "mlp.up_proj.weight", layers, (ffn, d)),
        ("model.norm.weight", 1, (d,)),
        ("rope tables", 1, (length, head_dim)),
        *([] if tied else [("lm_head.weight", 1, (vocab, d))]),
    ]
    expected = 28 + 4 * sum(n * math.prod(shape) for _, n, shape in layout)
    if size != expected:
        raise ValueError(f"{path} is no whole llama2.c file: {size} bytes, expected {expected}")
    tensors, offset = {}, 28
    for name, n, shape in layout:
        rotary_heads = heads if "q_proj" in name else kv_heads if "k_proj" in name else 0
        for i in range(n):
            tensor = stored(path, offset, shape, np.dtype("<f4"))
            if rotary_heads:
                tensor = tensor.map(lambda w, n=rotary_heads: halves(w, n), shape)
            tensors[name.format(i)] = tensor
            offset += 4 * math.prod(shape)
    del tensors["rope tables"]
    config = {
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": d,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": length,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return config, tensors
