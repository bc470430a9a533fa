"""A tiny decoder of each architecture of GGUF files, as llama.cpp computes it, too."""

import dataclasses
import json
import pathlib

import numpy as np
from drawn_weights import drawn
from flax.traverse_util import unflatten_dict

from jaxmem.architectures import decoder
from jaxmem.architectures.families.rope_scaling import yarn
from jaxmem.io.json_fields import JsonFields
from jaxmem.models.model import Model

FOLDER = pathlib.Path(__file__).with_name("reference")
NO_WINDOW = dict(local=(), window=0, local_scaled=False)
NO_BIAS = dict(qkv_bias=False, out_bias=False, mlp_bias=False)
YARN = yarn(JsonFields({"factor": 4.0}), 8, 100.0, 64, 16)["rope_factors"]

# {architecture, and what else the member shows: (reference model, changed fields of its Config)}
MEMBERS = {
    "llama": ("decoders/llama_linear", {}),
    "llama yarn": ("decoders/llama_yarn", {}),
    "llama llama3": ("decoders/exaone4", NO_WINDOW | dict(
        pre_norms=True, post_norms=False, qk_norm=False, no_rope=(), tensor_names="llama")),
    "llama biases": ("decoders/llama_biases", dict(activation=None)),
    "llama experts": ("decoders/mixtral", NO_WINDOW),
    "mistral3": ("decoders/ministral3", dict(rope_factors=YARN)),
    "qwen2": ("decoders/qwen2_sliding", NO_WINDOW),
    "qwen3": ("decoders/qwen3_biases", dict(out_bias=False)),
    "qwen2moe": ("decoders/qwen2_moe", dict(mixture=dict(dense=(), renormalized=False))),
    "qwen3moe": ("decoders/qwen3_moe", dict(out_bias=False, mixture=dict(renormalized=True))),
    "gemma": ("decoders/gemma", {}),
    "gemma2": ("decoders/gemma2", dict(query_scale=None)),
    "gemma3": ("gemma3", dict(query_scale=None)),
    "phi2": ("decoders/phi", {}),
    "phi3": ("decoders/phi3", NO_WINDOW),
    "phi3 longrope": ("decoders/phi3_long", {}),
    "olmo": ("decoders/olmo", {}),
    "olmo2": ("decoders/olmo2", dict(out_bias=False)),
    "olmo2 windows": ("decoders/olmo3", dict(local_theta=100.0)),
    "olmoe": ("decoders/olmoe", dict(kv_heads=6)),
    "stablelm": ("decoders/stablelm", {}),
    "stablelm parallel": ("decoders/stablelm_parallel", {}),
    "starcoder2": ("decoders/starcoder2", NO_WINDOW),
    "gpt-oss": ("decoders/gpt_oss", dict(rope_factors=YARN, mixture=dict(swiglu_limit=7.0))),
    "command-r": ("decoders/cohere", dict(qk_norm=False)),
    "cohere2": ("decoders/cohere2", dict(out_bias=False)),
    "deepseek2": ("decoders/deepseek_v2_greedy", dict(qkv_bias=False, out_bias=False)),
    "deepseek2 groups": ("decoders/deepseek_v3", {}),
    "granite": ("decoders/granite", {}),
    "granitemoe": ("decoders/granitemoe", {}),
    "nemotron": ("decoders/nemotron", dict(width=48)),
    "glm4": ("decoders/glm4", {}),
    "chatglm": ("decoders/glm", dict(width=48)),
    "arcee": ("decoders/arcee", NO_BIAS),
    "seed_oss": ("decoders/seed_oss", dict(out_bias=False)),
    "exaone4": ("decoders/exaone4", NO_WINDOW | dict(no_rope=(), width=48)),
    "smollm3": ("decoders/smollm3", NO_WINDOW | dict(no_rope=(False, False))),
    "gptneox": ("decoders/gpt_neox", {}),
    "gptneox in turn": ("decoders/gpt_neox", dict(parallel=False)),
    "starcoder": ("decoders/gpt_bigcode", {}),
    "bloom": ("decoders/bloom", {}),
    "mpt": ("decoders/mpt", dict(query_scale=None)),
    "falcon": ("decoders/falcon", NO_BIAS),
    "falcon two norms": ("decoders/falcon_new", {}),
}  # fmt: skip


def config(name):
    """The configuration of a member."""
    reference, changes = MEMBERS[name]
    hf = json.loads(str(np.load(FOLDER / f"{reference}.npz")["config"]))
    base = decoder.Config.from_hf(hf)
    mixture = {"mixture": dataclasses.replace(base.mixture, **changes["mixture"])} if (
        "mixture" in changes) else {}  # fmt: skip
    return dataclasses.replace(base, **changes | mixture)


def model(name):
    """A member whose parameters are drawn from their paths and shapes."""
    return drawn_model(config(name), name)


def drawn_model(c, name="drawn"):
    """A decoder whose parameters are drawn from their paths and shapes."""
    params = {}
    for path, weight_map in decoder.weights(c).items():
        x = drawn(path, weight_map.shape)
        params[path] = x + np.float32(path.endswith("scale") * (1 - c.norm_offset))
    return Model(c, unflatten_dict(params, sep="/"), None, name)
