"""Published configurations of models, for planning with shapes and without weights."""

_LLAMA3 = {
    "model_type": "llama",
    "vocab_size": 128_256,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "bos_token_id": 128_000,
    "eos_token_id": 128_001,
}


def _llama(sizes: tuple[int, int, int, int], factor: float, tied: bool) -> dict:
    """A config.json; `sizes` is (width, ffn, layers, heads), `factor` scales the rotary angles."""
    width, ffn, layers, heads = sizes
    return _LLAMA3 | {
        "hidden_size": width,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "tie_word_embeddings": tied,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    }


CONFIGS = {  # config.json of Llama 3.2 1B, Llama 3.1 8B and Llama 3.1 70B
    "llama-1b": _llama((2048, 8192, 16, 32), 32.0, True),
    "llama-8b": _llama((4096, 14_336, 32, 32), 8.0, False),
    "llama-70b": _llama((8192, 28_672, 80, 64), 8.0, False),
}
