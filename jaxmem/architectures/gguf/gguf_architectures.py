"""What the name of a GGUF file's architecture says of a decoder, in the words of Config.

A file names its architecture and holds the sizes; that a norm subtracts the mean, for example, only
the name says. The facts are those of llama.cpp's models.
"""

import dataclasses
from typing import Any

from ..families.hf_fields import BIASED, LAYER_NORM

_HEAD_DIM, _WIDTH = "head_dim", "width"


@dataclasses.dataclass(frozen=True)
class Windows:
    """Sliding windows: all layers are local but every `period`-th; with 0 all are.

    `size` is the window where no field says one. Local layers have the scaled frequencies of the
    others with `scaled`, and else those of the base `theta`, or of the others' base if it is 0.
    With `rotated_only`, layers that are not local have no positions. A model of another number of
    layers than `layers` has no windows. `ignored` says that a file has the window, but llama.cpp
    does not compute it, and `one_base` the same of a base of local layers.
    """

    size: int = 0
    period: int = 0
    scaled: bool = True
    theta: float = 0.0
    rotated_only: bool = False
    layers: int = 0
    ignored: bool = False
    one_base: bool = False


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One architecture of llama.cpp.

    Args:
        hf: `Config.tensor_names` of the family in a Hugging Face checkpoint; with experts `hf_moe`.
        names: the key of its tensors' names in `GGUF_NAMES`.
        says: fields of Config that the name alone says.
        may: fields of Config that are true where the file has a tensor for them.
        pairs: whether rows of q and k are stored in the order of neighbours that turn together.
        partial: whether a part of a head may be rotated.
        factors: whether divisors of rotary frequencies may be in the tensor rope_freqs.weight.
        scales: {field of the file: (field of Config, number where it is missing)}; 0 says nothing.
        divides: whether logits are divided by `logit_scale`.
        mixture: fields of Mixture that the name alone says, or None without experts.
        wide: the number of layers of the one model whose queries are scaled by width / heads.
        whole: whether all heads together are as wide as the model.
        qk_norm_layers: the least number of layers of a model that has norms of queries and keys.
    """

    hf: str
    says: dict[str, Any] = dataclasses.field(default_factory=dict)
    may: tuple[str, ...] = ("tied", "qkv_bias")
    names: str = "gguf"
    hf_moe: str = ""
    pairs: bool = False
    partial: bool = False
    factors: bool = False
    windows: Windows | None = None
    scales: dict[str, tuple[str, float]] = dataclasses.field(default_factory=dict)
    divides: bool = False
    mixture: dict[str, Any] | None = None
    wide: int = 0
    whole: bool = False
    qk_norm_layers: int = 0


_BIASES = ("qkv_bias", "out_bias", "mlp_bias")
_UNTIED = ("qkv_bias",)
_PLAIN = {"gated": False}
_GELU = {"activation": "gelu"}
_PARALLEL = {"parallel": True, "shared_norm": True}
_AFTER = {"pre_norms": False, "post_norms": True, "qk_norm": True}
_GPT = LAYER_NORM | BIASED | _PLAIN
_GEMMA = {"norm_offset": 1.0, "gelu": True, "embed_scale": _WIDTH, "tied": True}
_SCALED = _GEMMA | {"post_norms": True, "query_scale": _HEAD_DIM}
_COHERE = _PARALLEL | {"norm": "layer", "interleaved": True, "tied": True, "qk_norm_over": "heads"}
_CAPS = {"final_logit_softcapping": ("logit_softcap", 0.0)}
_SCORE_CAPS = {
    "final_logit_softcapping": ("logit_softcap", 30.0),
    "attn_logit_softcapping": ("attention_softcap", 50.0),
}
_LOGITS = {"logit_scale": ("logit_scale", 0.0)}
_CLAMP = {"attention.clamp_kqv": ("clip_qkv", 0.0)}
_GRANITE = _LOGITS | {
    "residual_scale": ("residual_scale", 0.0),
    "embedding_scale": ("embed_scale", 0.0),
    "attention.scale": ("query_scale", 0.0),
}
_RENORMALIZED = {"renormalized": True}
_DEEPSEEK = {"interleaved": True, "query_scale": _HEAD_DIM}
_GPT_OSS = {"router_bias": True, "expert_bias": True, "swiglu_limit": 7.0, "swiglu_alpha": 1.702}

# A model that several of them describe is written as the first one.
ARCHITECTURES = {
    "qwen2": Architecture("llama", {"qkv_bias": True}, ("tied",), whole=True),
    "seed_oss": Architecture(
        "llama", {"qkv_bias": True}, ("tied",), names="gguf post_attention_norm"
    ),
    "llama": Architecture(
        "llama",
        may=("tied", *_BIASES),
        hf_moe="mixtral",
        pairs=True,
        factors=True,
        mixture=_RENORMALIZED,
    ),
    "mistral3": Architecture("llama", may=("tied", *_BIASES), pairs=True, factors=True),
    "qwen3": Architecture("llama", {"qk_norm": True}),
    "qwen2moe": Architecture("qwen_moe", may=_UNTIED, mixture={"shared_gate": True}, whole=True),
    "qwen3moe": Architecture("qwen_moe", {"qk_norm": True}, mixture=_RENORMALIZED),
    "gemma": Architecture("llama", _GEMMA, _UNTIED),
    "gemma2": Architecture(
        "llama",
        _SCALED,
        _UNTIED,
        windows=Windows(4096, 2),
        scales=_SCORE_CAPS,
        wide=46,
    ),
    "gemma3": Architecture(
        "llama",
        _SCALED | {"qk_norm": True},
        ("tied", "qkv_bias"),
        windows=Windows(0, 6, scaled=False, theta=10_000.0),
        scales=_CAPS,
        wide=62,
    ),
    "phi2": Architecture(
        "phi", _GPT | _PARALLEL | {"gelu": True, "head_bias": True}, (), partial=True, whole=True
    ),
    "phi3": Architecture(
        "phi3",
        may=("tied",),
        names="gguf qkv gate_up",
        partial=True,
        windows=Windows(ignored=True),
        whole=True,
    ),
    "olmo": Architecture(
        "llama", {"norm": "layer", "norm_gain": False}, pairs=True, scales=_CLAMP, whole=True
    ),
    "olmo2": Architecture(
        "post_norms",
        _AFTER | {"qk_norm_over": "all"},
        _UNTIED,
        windows=Windows(0, 4, scaled=False, one_base=True),
        whole=True,
    ),
    "olmoe": Architecture(
        "qwen_moe", {"qk_norm": True, "qk_norm_over": "all"}, _UNTIED, mixture={}, whole=True
    ),
    "stablelm": Architecture(
        "stablelm",
        LAYER_NORM | {"qk_norm_over": "heads"},
        ("qkv_bias", "qk_norm", "parallel"),
        partial=True,
        whole=True,
    ),
    "starcoder2": Architecture("starcoder2", _GPT | {"gelu": True}, ("tied",), whole=True),
    "gpt-oss": Architecture(
        "gpt_oss",
        {"sinks": True, "qkv_bias": True, "out_bias": True},
        (),
        names="gguf post_attention_norm",
        windows=Windows(0, 2),
        mixture=_GPT_OSS | _RENORMALIZED,
    ),
    "command-r": Architecture(
        "llama", _COHERE, ("qkv_bias", "qk_norm"), scales=_LOGITS, qk_norm_layers=64, whole=True
    ),
    "cohere2": Architecture(
        "llama",
        _COHERE,
        _UNTIED,
        scales=_LOGITS,
        windows=Windows(0, 4, rotated_only=True),
        whole=True,
    ),
    "deepseek2": Architecture(
        "deepseek",
        _DEEPSEEK,
        ("tied",),
        names="gguf latent",
        mixture={},
    ),
    "granite": Architecture(
        "llama",
        may=("tied", *_BIASES),
        pairs=True,
        factors=True,
        scales=_GRANITE,
        divides=True,
    ),
    "granitemoe": Architecture(
        "granitemoe",
        may=("tied", *_BIASES),
        pairs=True,
        factors=True,
        scales=_GRANITE,
        divides=True,
        mixture=_RENORMALIZED,
    ),
    "nemotron": Architecture(
        "llama",
        LAYER_NORM | _PLAIN | {"norm_offset": 1.0, "activation": "relu2"},
        _BIASES,
        partial=True,
        whole=True,
    ),
    "glm4": Architecture(
        "glm4",
        {"interleaved": True, "post_norms": True},
        names="gguf gate_up",
        partial=True,
    ),
    "chatglm": Architecture(
        "glm4", {"interleaved": True}, names="gguf gate_up", partial=True, whole=True
    ),
    "arcee": Architecture("llama", _PLAIN | {"activation": "relu2"}, pairs=True, factors=True),
    "exaone4": Architecture(
        "post_norms",
        _AFTER,
        factors=True,
        windows=Windows(4096, 4, rotated_only=True, layers=64),
        whole=True,
    ),
    "smollm3": Architecture("llama", {"no_rope": 4}, pairs=True),
    "gptneox": Architecture(
        "gpt_neox", _GPT | _GELU, ("parallel",), names="gguf qkv", partial=True, whole=True
    ),
    "starcoder": Architecture(
        "gpt_bigcode",
        _GPT | {"gelu": True, "positions": "learned"},
        ("tied",),
        names="gguf qkv",
        whole=True,
    ),
    "bloom": Architecture(
        "bloom",
        _GPT | {"gelu": True, "positions": "alibi", "embed_norm": True},
        ("tied",),
        names="gguf qkv",
        whole=True,
    ),
    "mpt": Architecture(
        "mpt",
        _PLAIN | _GELU | {"norm": "layer", "positions": "alibi"},
        ("tied",),
        names="gguf qkv",
        scales=_CLAMP,
        whole=True,
    ),
    "falcon": Architecture(
        "falcon", LAYER_NORM | _PLAIN | _GELU | _PARALLEL, ("tied",), names="gguf qkv", whole=True
    ),
}
