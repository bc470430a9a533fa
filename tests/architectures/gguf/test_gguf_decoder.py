"""Fields of a GGUF file: read with llama.cpp's defaults, or refused by name."""

import dataclasses
import pathlib

import numpy as np
import pytest

from jaxmem.architectures import llama
from jaxmem.architectures.gguf import gguf_decoder
from jaxmem.architectures.gguf.gguf_rope import llama3_factors
from jaxmem.core.lazy import Lazy
from jaxmem.formats.gguf import Gguf
from jaxmem.models import gguf_models

FIELDS = {
    "context_length": 64,
    "embedding_length": 32,
    "block_count": 2,
    "feed_forward_length": 48,
    "attention.head_count": 4,
    "attention.layer_norm_rms_epsilon": 1e-6,
    "attention.layer_norm_epsilon": 1e-6,
}
FREQUENCIES = 1e4 ** -(np.arange(0, 8, 2) / 8)
FACTORS = np.array([1, 1.5, 3, 8], np.float32)


def tensor(*shape, value=None):
    value = np.zeros(shape, np.float32) if value is None else value
    return Lazy(value.shape, np.dtype("float32"), lambda _: value)


HEAD = {"output.weight": tensor(64, 32)}


def described(arch="llama", factors=None, blocks=(0, 1), embedding=(64, 32), **fields):
    named = {f"{arch}.{name.replace('__', '.')}": x for name, x in (FIELDS | fields).items()}
    tensors = {"token_embd.weight": tensor(*embedding)}
    tensors |= {f"blk.{i}.attn_norm.weight": tensor(32) for i in blocks}
    if factors is not None:
        tensors["rope_freqs.weight"] = tensor(value=factors)
    fields = {name: x for name, x in named.items() if x is not None}
    return Gguf(pathlib.Path("some.gguf"), {"general.architecture": arch} | fields, tensors)


WRONG = {
    "a size of text": ({"embedding_length": "32"}, "embedding_length is '32', expected an integer"),
    "no size": ({"context_length": None}, "context_length is missing"),
    "no heads": ({"attention__head_count": 0}, "attention.head_count is 0, expected an integer of"),
    "negative heads": ({"attention__head_count": -4}, "attention.head_count is -4"),
    "heads by layer": ({"attention__head_count": [4, 2]}, r"attention.head_count is \[4, 2\]"),
    "a size of a bool": ({"feed_forward_length": True}, "feed_forward_length is True"),
    "a fraction": ({"attention__key_length": 8.0}, "attention.key_length is 8.0, expected an int"),
    "2^31 layers": ({"block_count": 2**31 - 1}, "block_count is .*it has no tensors of block 2"),
    "fewer layers": ({"block_count": 1}, "block_count is 1, expected .* it has tensors of block 1"),
    "layers apart": ({"blocks": (0, 2)}, "block_count is 2, .* it has tensors of block 2"),
    "eps of text": ({"attention__layer_norm_rms_epsilon": "x"}, "layer_norm_rms_epsilon is 'x'"),
    "eps of nan": ({"attention__layer_norm_rms_epsilon": np.nan}, "layer_norm_rms_epsilon is nan"),
    "theta of 0": ({"rope__freq_base": 0.0}, "rope.freq_base is 0.0, expected a finite number"),
    "dynamic": (
        {"rope__scaling__type": "dynamic"},
        "scaling.type is 'dynamic', expected one of no",
    ),
    "yarn": ({"rope__scaling__type": "yarn"}, "rope.scaling.factor is missing"),
    "longrope": ({"rope__scaling__type": "longrope"}, "has no tensor rope_factors_short.weight"),
    "a negative factor": ({"rope__scaling__factor": -2.0}, "rope.scaling.factor is -2.0"),
    "a part of a head": (
        {"rope__dimension_count": 4, "attention__key_length": 8},
        "rope.dim",
    ),
    "other values": ({"attention__value_length": 4}, "attention.value_length is 4, expected 8"),
    "experts": ({"expert_count": 8}, "expert_used_count is missing"),
    "a twist": ({"twist": 8}, "llama.twist is 8, a field that is not known here"),
    "a window": (
        {"attention__sliding_window": 8},
        "attention.sliding_window is 8, a field that is",
    ),
    "no causal mask": ({"attention__causal": False}, "attention.causal is False, expected True"),
    "a scale": ({"attention__scale": 1.0}, "attention.scale is 1.0, expected 0.35"),
    "a cap": ({"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0, a field"),
    "factors of nan": ({"factors": FACTORS * np.nan}, "rope_freqs.weight is .*expected numbers"),
    "too many factors": ({"factors": np.ones(8)}, r"rope_freqs.weight has shape \(8,\)"),
    "a vector of tokens": ({"embedding": (64,)}, "has no matrix token_embd.weight"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_field_that_cannot_be_right_is_named(name):
    changes, message = WRONG[name]
    with pytest.raises(ValueError, match=rf"^some\.gguf.*{message}"):
        gguf_decoder.config(described(**changes))


@pytest.mark.parametrize("arch", [3, ["llama"], None, "mamba"])
def test_an_architecture_that_is_none_of_ours_is_named(arch):
    with pytest.raises(
        ValueError, match=r"some\.gguf is of architecture .*expected qwen2, seed_oss"
    ):
        gguf_decoder.config(Gguf(pathlib.Path("some.gguf"), {"general.architecture": arch}, {}))


def test_a_pattern_of_windows_is_read():
    window = {"attention__sliding_window": 16}
    pattern = {"attention__sliding_window_pattern": [False, True], "rope__freq_base_swa": 500.0}
    config = gguf_decoder.config(described("gemma3", **window, **pattern))
    assert config.local == (False, True) and config.local_theta == 500.0
    config = gguf_decoder.config(described("gemma3", **window))
    assert config.local == (True, True) and config.local_theta == 1e4
    with pytest.raises(ValueError, match=r"sliding_window_pattern is \[True\], expected a bool"):
        gguf_decoder.config(described("gemma3", **window, attention__sliding_window_pattern=[True]))


def test_an_equal_number_for_each_layer_is_one_number():
    file = described(attention__head_count=[4, 4], feed_forward_length=[48, 48])
    config = gguf_decoder.config(file)
    assert config.heads == 4 and config.ffn == 48


SCALINGS = {
    "none": ({}, 1),
    "a type": ({"rope__scaling__type": "linear", "rope__scaling__factor": 4.0}, 4),
    "no type": ({"rope__scaling__factor": 4.0}, 4),
    "the old name": ({"rope__scale_linear": 4.0}, 4),
    "both names": ({"rope__scaling__factor": 2.0, "rope__scale_linear": 4.0}, 2),
    "switched off": ({"rope__scaling__type": "none", "rope__scaling__factor": 4.0}, 1),
    "a factor of 0": ({"rope__scaling__factor": 0.0}, 1),
    "factors": ({"factors": FACTORS}, FACTORS),
    "both": ({"factors": FACTORS, "rope__scaling__factor": 2.0}, 2 * FACTORS),
}


@pytest.mark.parametrize("name", SCALINGS)
def test_frequencies_are_divided_as_the_file_says(name):
    fields, divisor = SCALINGS[name]
    config = gguf_decoder.config(described(**fields))
    for frequencies in llama.per_layer(config)["frequencies"]:
        np.testing.assert_allclose(frequencies, FREQUENCIES / divisor, rtol=1e-6)


def test_the_factors_of_llama_3_1_are_known_as_its_scaling():
    scaling = (8.0, 1.0, 4.0, 8192.0)
    factors = llama3_factors(8, 5e5, scaling)
    file = described(factors=factors, rope__freq_base=5e5)
    config = gguf_decoder.config(file)
    assert config.rope_scaling == scaling and config.rope_factors == ()


@pytest.mark.parametrize(
    ("arch", "name"),
    [
        ("llama", "blk.0.attn_q_norm.weight"),
        ("llama", "blk.0.ffn_gate_exps.weight"),
        ("llama", "attn_q.weight"),
        ("qwen2", "blk.0.attn_output.bias"),
        ("command-r", "blk.0.attn_q_norm.weight"),
    ],
)
def test_a_tensor_that_would_be_left_out_is_refused(arch, name):
    file = described(arch)
    file.tensors[name] = tensor(32)
    config = gguf_decoder.config(file)
    with pytest.raises(ValueError, match=rf"1 tensors that a {arch} does not compute .*{name}"):
        gguf_decoder.weights_of_file(file, config)
    del file.tensors[name]
    file.tensors["rope_freqs.weight"] = file.tensors["blk.0.attn_rot_embd.weight"] = tensor(4)
    assert "embed/embedding" in gguf_decoder.weights_of_file(file, config)


MIXED = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 8}
LATENT = MIXED | {
    "attention__head_count_kv": 1,
    "attention__kv_lora_rank": 6,
    "attention__key_length": 10,
    "attention__value_length": 6,
    "attention__key_length_mla": 12,
    "attention__value_length_mla": 8,
    "rope__dimension_count": 4,
}


@pytest.mark.parametrize(
    ("arch", "fields", "message"),
    [
        ("qwen3moe", {}, "expert_count is None, expected at least 1"),
        ("qwen3moe", MIXED | {"expert_weights_norm": False}, "expert_weights_norm is False, expec"),
        ("olmoe", MIXED | {"expert_gating_func": 2}, "expert_gating_func is 2, expected 1"),
        ("deepseek2", LATENT | {"expert_gating_func": 4}, "expert_gating_func is 4, expected 1, a"),
        ("deepseek2", LATENT | {"attention__key_length": 9}, "attention.key_length is 9, expected"),
        (
            "deepseek2",
            LATENT | {"attention__key_length_mla": 4},
            "key_length_mla is 4, expected mo",
        ),
        ("granite", {"rope__scaling__finetuned": False}, "finetuned is False, expected True"),
        ("mpt", {"attention__max_alibi_bias": -1.0}, "max_alibi_bias is -1.0, expected a finite"),
    ],
)
def test_a_field_of_an_architecture_that_cannot_be_right_is_named(arch, fields, message):
    with pytest.raises(ValueError, match=rf"some\.gguf: {arch}\.\S*{message}"):
        gguf_decoder.config(described(arch, **fields))


def test_the_largest_exponent_of_alibi_is_read():
    assert gguf_decoder.config(described("mpt", attention__max_alibi_bias=4.0)).alibi_max == 4


def test_one_tensor_holds_queries_keys_and_values_or_each_has_its_own():
    file = described("phi2", attention__head_count=4)
    assert (
        gguf_decoder.weights_of_file(file, gguf_decoder.config(file))["layers/attn/k/kernel"].names[
            0
        ]
        == "blk.0.attn_k.weight"
    )
    file.tensors["blk.0.attn_qkv.weight"] = tensor(96, 32)
    maps = gguf_decoder.weights_of_file(file, gguf_decoder.config(file))
    rows = np.arange(96 * 32).reshape(96, 32)
    assert maps["layers/attn/k/kernel"].names[0] == "blk.0.attn_qkv.weight"
    np.testing.assert_array_equal(maps["layers/attn/k/kernel"].fn(rows), rows[32:64].T)


@pytest.mark.parametrize("tied", [True, False])
def test_gpt_2_has_a_head_if_the_file_has_one(tied):
    file = described("gpt2")
    file = file if tied else dataclasses.replace(file, tensors=file.tensors | HEAD)
    config, maps = gguf_models.config_and_weights(file)
    assert config.tied == tied
    assert ("head/kernel" in maps) is not tied
