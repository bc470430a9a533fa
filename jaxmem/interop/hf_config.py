"""config_json: the config.json of a model of the Llama family."""

import dataclasses
import math
from typing import Any

CLASSES = {  # model_type: the class in transformers that opens a model
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "llama4_text": "Llama4ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "bert": "BertModel",
}


def config_json(config: Any) -> dict:
    """The config.json, in the form of transformers 4, that `Config.from_hf` reads as `config`.

    Raises:
        ValueError: a field of `config` cannot be expressed in a config.json.

    Example:
        >>> from jaxmem.architectures.llama import Config
        >>> sizes = dict(vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8)
        >>> config = Config(**sizes, rope_scaling=(8.0, 1.0, 4.0, 8192.0))
        >>> Config.from_hf(config_json(config)) == config
        True
    """
    c = config
    kind = "qwen3" if c.qk_norm else "qwen2" if c.qkv_bias else "mistral" if c.local else "llama"
    kind = "gemma3_text" if c.post_norms else kind
    hf = {
        "architectures": [CLASSES[kind]],
        "model_type": kind,
        "vocab_size": c.vocab,
        "hidden_size": c.width,
        "intermediate_size": c.ffn,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_dim,
        "max_position_embeddings": c.context,
        "rms_norm_eps": c.eps,
        "rope_theta": c.theta,
        "tie_word_embeddings": c.tied,
        "bos_token_id": c.bos,
        "eos_token_id": c.eos[0] if len(c.eos) == 1 else list(c.eos) or None,
    }
    act = "gelu_pytorch_tanh" if c.gelu else "silu"
    hf["hidden_activation" if c.post_norms else "hidden_act"] = act
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    if c.rope_scaling:
        rope_type = "linear" if len(c.rope_scaling) == 1 else "llama3"
        hf["rope_scaling"] = {"rope_type": rope_type} | dict(zip(names, c.rope_scaling))
    if c.rope_factors:
        factors = {name: list(c.rope_factors) for name in ("short_factor", "long_factor")}
        hf["rope_scaling"] = {"rope_type": "longrope", "attention_factor": 1.0} | factors
        hf["rope_scaling"]["original_max_position_embeddings"] = c.context
    if c.local:
        hf |= {
            "sliding_window": c.window,
            "layer_types": ["sliding_attention" if x else "full_attention" for x in c.local],
        }
        hf |= {"use_sliding_window": True} if kind.startswith("qwen") else {}
    if c.post_norms:
        hf |= {"rope_local_base_freq": c.local_theta}
        hf |= {"query_pre_attn_scalar": c.query_scale**-2} if c.query_scale else {}
    read = dataclasses.asdict(type(c).from_hf(hf))
    for name, expected in dataclasses.asdict(c).items():
        close = isinstance(expected, float) and math.isclose(read[name], expected, rel_tol=1e-12)
        unused = name == "local_theta" and not c.local
        if read[name] != expected and not close and not unused:
            message = f"no config.json says {name} = {expected}; it would read as {read[name]}"
            raise ValueError(message)
    return hf
