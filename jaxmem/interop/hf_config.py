"""config_json: the config.json of a model of the Llama family."""

import dataclasses
import math
from typing import Any

_CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
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
    found = {
        "architectures": [_CLASSES[kind]],
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
    found["hidden_activation" if c.post_norms else "hidden_act"] = act
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    if c.rope_scaling:
        kind_of = "linear" if len(c.rope_scaling) == 1 else "llama3"
        found["rope_scaling"] = {"rope_type": kind_of} | dict(zip(names, c.rope_scaling))
    if c.local:
        found |= {
            "sliding_window": c.window,
            "use_sliding_window": True,
            "layer_types": ["sliding_attention" if x else "full_attention" for x in c.local],
        }
    if c.post_norms:
        found |= {"rope_local_base_freq": c.local_theta}
        found |= {"query_pre_attn_scalar": c.query_scale**-2} if c.query_scale else {}
    again = dataclasses.asdict(type(c).from_hf(found))
    for name, want in dataclasses.asdict(c).items():
        near = isinstance(want, float) and math.isclose(again[name], want, rel_tol=1e-12)
        moot = name == "local_theta" and not c.local
        if again[name] != want and not near and not moot:
            raise ValueError(f"no config.json says {name} = {want}; it would read as {again[name]}")
    return found
