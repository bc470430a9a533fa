"""Hugging Face names of a Llama: fields of `config.json`, and tensors of a checkpoint."""

from typing import Any

import numpy as np

from .weight_map import WeightMap, same

_GEMMA = {
    "vocab_size": 262_208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "tie_word_embeddings": True,
    "rope_theta": 1e6,
    "query_pre_attn_scalar": 256,
    "max_position_embeddings": 131_072,
    "sliding_window": 4096,
    "hidden_activation": "gelu_pytorch_tanh",
    "bos_token_id": 2,
    "eos_token_id": 1,
}  # transformers' defaults, which the published configs of Gemma 3 leave out
_DEFAULTS = {"qwen3": {"head_dim": 128}, "gemma3_text": _GEMMA}
_TYPES = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text")
_UNSUPPORTED = (
    "attention_bias",
    "mlp_bias",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "use_bidirectional_attention",
    "partial_rotary_factor",
)


def from_hf(hf: dict) -> dict[str, Any]:
    """The fields of a Llama Config from a checkpoint's `config.json`, of transformers 4 or 5.

    Raises:
        ValueError: `hf` lacks a size, or has a model type or an option that llama.py does not
            compute.
    """
    hf = hf.get("text_config", hf)
    kind = hf.get("model_type")
    if kind not in _TYPES:
        raise ValueError(f"model_type is {kind!r}, expected one of {', '.join(_TYPES)}")
    hf = {"rms_norm_eps": 1e-6, **_DEFAULTS.get(kind, {}), **hf}
    for option in _UNSUPPORTED:
        if hf.get(option):
            raise ValueError(f"{option} is {hf[option]!r}, which this model does not compute")
    gemma = kind == "gemma3_text"
    act = hf.get("hidden_activation" if gemma else "hidden_act", "silu")
    if act != ("gelu_pytorch_tanh" if gemma else "silu"):
        raise ValueError(f"the activation is {act!r}, which {kind} does not compute")
    try:
        width, heads, layers = (
            hf[k] for k in ("hidden_size", "num_attention_heads", "num_hidden_layers")
        )
        sizes = {"vocab": hf["vocab_size"], "ffn": hf["intermediate_size"]}
    except KeyError as e:
        raise ValueError(f"config.json has no {e}") from None
    eos = hf.get("eos_token_id")
    scalar = hf.get("query_pre_attn_scalar")
    return dict(
        **sizes,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=hf.get("num_key_value_heads") or heads,
        head_dim=hf.get("head_dim") or width // heads,
        tied=hf.get("tie_word_embeddings", False),
        context=hf.get("max_position_embeddings", 2048),
        eps=hf["rms_norm_eps"],
        **_rope(hf),
        **_window(hf, kind, layers),
        qkv_bias=kind == "qwen2",
        qk_norm=kind in ("qwen3", "gemma3_text"),
        post_norms=gemma,
        norm_offset=1.0 if gemma else 0.0,
        embed_scale=width**0.5 if gemma else 1.0,
        query_scale=scalar**-0.5 if gemma else None,
        gelu=gemma,
        bos=hf.get("bos_token_id"),
        eos=() if eos is None else tuple(eos) if isinstance(eos, list) else (eos,),
    )


def weights(config) -> dict[str, WeightMap]:
    """The tensors of a Hugging Face checkpoint that each parameter is read from.

    Example:
        >>> from jaxmem.architectures import llama
        >>> config = llama.Config(
        ...     vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8
        ... )
        >>> llama.weights(config)["layers/attn/k/kernel"].shape
        (2, 32, 16)
    """
    c, out = config, {}

    def stack(path, name, *shape, fn=same):
        names = tuple(f"model.layers.{i}.{name}" for i in range(c.layers))
        out[f"layers/{path}"] = WeightMap(names, (c.layers, *shape), fn, stacked=True)

    def kernel(path, name, k, n):
        stack(f"{path}/kernel", f"{name}.weight", k, n, fn=np.transpose)

    d, q, kv = c.width, c.heads * c.head_dim, c.kv_heads * c.head_dim
    out["embed/embedding"] = WeightMap(("model.embed_tokens.weight",), (c.vocab, d))
    for x, n in {"q": q, "k": kv, "v": kv}.items():
        kernel(f"attn/{x}", f"self_attn.{x}_proj", d, n)
        if c.qkv_bias:
            stack(f"attn/{x}/bias", f"self_attn.{x}_proj.bias", n)
        if c.qk_norm and x != "v":
            stack(f"attn/{x}_norm/scale", f"self_attn.{x}_norm.weight", c.head_dim)
    kernel("attn/out", "self_attn.o_proj", q, d)
    for x in ("gate", "up"):
        kernel(f"mlp/{x}", f"mlp.{x}_proj", d, c.ffn)
    kernel("mlp/down", "mlp.down_proj", c.ffn, d)
    after = "post_attention_layernorm.weight"
    stack("attn_norm/scale", "input_layernorm.weight", d)
    stack("mlp_norm/scale", "pre_feedforward_layernorm.weight" if c.post_norms else after, d)
    if c.post_norms:
        stack("attn_post_norm/scale", after, d)
        stack("mlp_post_norm/scale", "post_feedforward_layernorm.weight", d)
    out["final_norm/scale"] = WeightMap(("model.norm.weight",), (d,))
    if not c.tied:
        out["head/kernel"] = WeightMap(("lm_head.weight",), (d, c.vocab), np.transpose)
    return out


def _rope(hf: dict) -> dict[str, Any]:
    """The rotary fields of Config.

    transformers 5 writes them in `rope_parameters`, with one entry for each layer type if a model
    has several; transformers 4 writes `rope_theta` and `rope_scaling`.
    """
    rope = hf.get("rope_parameters") or {}
    full = rope.get("full_attention", rope)
    sliding = rope.get("sliding_attention", {})
    scaling = hf.get("rope_scaling") or full
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    names = {
        "default": (),
        "linear": ("factor",),
        "llama3": (
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "original_max_position_embeddings",
        ),
    }
    if kind not in names:
        raise ValueError(f"rope_type is {kind!r}, expected one of {', '.join(names)}")
    theta = full.get("rope_theta", hf.get("rope_theta", 10_000.0))
    return {
        "theta": theta,
        "rope_scaling": tuple(float(scaling[name]) for name in names[kind]),
        "local_theta": sliding.get("rope_theta", hf.get("rope_local_base_freq", 10_000.0))
        if hf["model_type"] == "gemma3_text"
        else theta,
    }


def _window(hf: dict, kind: str, layers: int) -> dict[str, Any]:
    """The fields `local` and `window` of Config; {} if every layer has full attention."""
    size = hf.get("sliding_window")
    if not size or (kind.startswith("qwen") and not hf.get("use_sliding_window")):
        return {}
    every = hf.get("sliding_window_pattern", 6)
    first = hf.get("max_window_layers", 0)
    slides = {
        "gemma3_text": lambda i: (i + 1) % every != 0,
        "qwen2": lambda i: i >= first,
        "qwen3": lambda i: i >= first,
    }.get(kind, lambda i: True)
    types = hf.get("layer_types")
    local = [t == "sliding_attention" for t in types] if types else map(slides, range(layers))
    return {"local": tuple(local), "window": size}
