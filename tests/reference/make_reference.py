"""Writes the .npz files beside it: tiny random models and what transformers computes with them.

    python tests/reference/make_reference.py [NAME ...]

Wants `pip install torch transformers` (made with torch 2.13, transformers 5.23;
gemma3 and gpt2 with 5.24); the tests do not.
Each file holds the weights (float16, drawn by NumPy from SEED, under their checkpoint names), the
`config.json` as text, the ids, and the float32 logits or hidden states of those weights.
"""

import json
import pathlib
import sys

import numpy as np
import torch
import transformers as tf

SEED = 20240601
SEEDS = {"gemma3": SEED + 10, "gpt2": SEED + 4}  # with these they write several tokens
SMALL = dict(
    vocab_size=40,
    hidden_size=24,
    intermediate_size=28,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
    attn_implementation="eager",
)
LLAMA3 = dict(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
GEMMA = dict(
    hidden_size=20,
    intermediate_size=18,
    num_hidden_layers=3,
    sliding_window=5,
    sliding_window_pattern=3,
)
MODELS = {
    "llama2": tf.LlamaConfig(**SMALL),
    "llama3": tf.LlamaConfig(
        **SMALL, rope_theta=500.0, rope_scaling=LLAMA3, tie_word_embeddings=True
    ),
    "mistral": tf.MistralConfig(**SMALL, sliding_window=5),
    "qwen2": tf.Qwen2Config(**{**SMALL, "head_dim": 6}, tie_word_embeddings=True),
    "qwen3": tf.Qwen3Config(**SMALL),
    "gemma3": tf.Gemma3TextConfig(
        **{**SMALL, **GEMMA},
        query_pre_attn_scalar=20,
        rope_theta=1000.0,
        rope_local_base_freq=50.0,
        rope_scaling=dict(rope_type="linear", factor=4.0),
    ),
    "gpt2": tf.GPT2Config(
        vocab_size=40, n_positions=32, n_embd=21, n_layer=2, n_head=3, attn_implementation="eager"
    ),
    "bert": tf.BertConfig(
        **{k: v for k, v in SMALL.items() if k not in ("num_key_value_heads", "head_dim")},
        type_vocab_size=2,
    ),
}


def make(config: tf.PreTrainedConfig, seed: int) -> dict[str, np.ndarray]:
    """One model's config, weights, inputs and outputs."""
    rng = np.random.default_rng(seed)
    encoder = config.model_type == "bert"
    model = (tf.AutoModel if encoder else tf.AutoModelForCausalLM).from_config(config).eval()
    if encoder:
        model.pooler = None
    weights = {}
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = 0.25 * rng.standard_normal(tuple(p.shape))
            w = (noise if p.ndim > 1 else p.numpy() + noise).astype(np.float16)
            p.copy_(torch.tensor(w, dtype=torch.float32))
            weights[name] = w
        ids = rng.integers(0, config.vocab_size, (2, 24))
        mask = np.arange(24)[None] < np.array([[24], [17]])
        out = (
            model(torch.tensor(ids), attention_mask=torch.tensor(mask, dtype=torch.long))
            if encoder
            else model(torch.tensor(ids))
        )
    result = {"hidden": out.last_hidden_state} if encoder else {"logits": out.logits}
    text = json.dumps(config.to_diff_dict())
    extra = {"config": np.array(text), "ids": ids, **({"mask": mask} if encoder else {})}
    return {**weights, **extra, **{k: v.numpy() for k, v in result.items()}}


if __name__ == "__main__":
    for name in sys.argv[1:] or MODELS:
        path = pathlib.Path(__file__).with_name(f"{name}.npz")
        np.savez_compressed(path, **make(MODELS[name], SEEDS.get(name, SEED)))
        print(f"{path.name}: {path.stat().st_size} bytes")
        assert path.stat().st_size <= 40_000
