"""Fields of a GGUF file: read with llama.cpp's defaults, or refused by name."""

import dataclasses
import pathlib

import numpy as np
import pytest

from jaxmem.architectures import gpt2, llama
from jaxmem.core.lazy import Lazy
from jaxmem.formats import gguf_config, gguf_llama
from jaxmem.formats.gguf import Gguf

FIELDS = {
    "context_length": 64,
    "embedding_length": 32,
    "block_count": 2,
    "feed_forward_length": 48,
    "attention.head_count": 4,
    "attention.layer_norm_rms_epsilon": 1e-6,
    "attention.layer_norm_epsilon": 1e-6,
    "attention.sliding_window": 16,
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
    "yarn": ({"rope__scaling__type": "yarn"}, "rope.scaling.type is 'yarn', expected one of none,"),
    "a negative factor": ({"rope__scaling__factor": -2.0}, "rope.scaling.factor is -2.0"),
    "a part of a head": (
        {"rope__dimension_count": 4, "attention__key_length": 8},
        "rope.dim",
    ),
    "other values": ({"attention__value_length": 4}, "attention.value_length is 4, expected 8"),
    "experts": ({"expert_count": 8}, "expert_count is 8, expected 0, which is what is computed"),
    "no causal mask": ({"attention__causal": False}, "attention.causal is False, expected True"),
    "a scale": ({"attention__scale": 1.0}, "attention.scale is 1.0, expected 0.35"),
    "a cap": ({"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0, expected 0"),
    "factors of nan": ({"factors": FACTORS * np.nan}, "rope_freqs.weight is .*expected numbers"),
    "too many factors": ({"factors": np.ones(8)}, r"rope_freqs.weight has shape \(8,\)"),
    "a vector of tokens": ({"embedding": (64,)}, "has no matrix token_embd.weight"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_field_that_cannot_be_right_is_named(name):
    changes, message = WRONG[name]
    with pytest.raises(ValueError, match=rf"^some\.gguf.*{message}"):
        gguf_config.config(described(**changes))


@pytest.mark.parametrize("arch", [3, ["llama"], None, "mamba"])
def test_an_architecture_that_is_none_of_ours_is_named(arch):
    with pytest.raises(ValueError, match=r"some\.gguf is of architecture .*expected llama, qwen2"):
        gguf_config.config(Gguf(pathlib.Path("some.gguf"), {"general.architecture": arch}, {}))


def test_a_pattern_of_windows_is_read():
    pattern = {"attention__sliding_window_pattern": [False, True], "rope__freq_base_swa": 500.0}
    config = llama.Config.from_hf(gguf_config.config(described("gemma3", **pattern)))
    assert config.local == (False, True) and config.local_theta == 500.0
    config = llama.Config.from_hf(gguf_config.config(described("gemma3")))
    assert config.local == (True, True) and config.local_theta == 1e4
    with pytest.raises(ValueError, match=r"sliding_window_pattern is \[True\], expected a bool"):
        gguf_config.config(described("gemma3", attention__sliding_window_pattern=[True]))


def test_an_equal_number_for_each_layer_is_one_number():
    hf = gguf_config.config(described(attention__head_count=[4, 4], feed_forward_length=[48, 48]))
    assert hf["num_attention_heads"] == 4 and hf["intermediate_size"] == 48


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
    config = llama.Config.from_hf(gguf_config.config(described(**fields)))
    for frequencies in llama.per_layer(config)["frequencies"]:
        np.testing.assert_allclose(frequencies, FREQUENCIES / divisor, rtol=1e-6)


def test_the_factors_of_llama_3_1_are_known_as_its_scaling():
    scaling = (8.0, 1.0, 4.0, 8192.0)
    factors = gguf_config.llama3_factors(8, 5e5, scaling)
    file = described(factors=factors, rope__freq_base=5e5)
    config = llama.Config.from_hf(gguf_config.config(file))
    assert config.rope_scaling == scaling and config.rope_factors == ()


@pytest.mark.parametrize("tied", [True, False])
def test_gpt_2_has_a_head_if_the_file_has_one(tied):
    file = described("gpt2")
    file = file if tied else dataclasses.replace(file, tensors=file.tensors | HEAD)
    config = gpt2.Config.from_hf(gguf_config.config(file))
    assert config.tied == tied
    assert gguf_llama.sources(file).get("lm_head.weight") == (None if tied else "output.weight")
