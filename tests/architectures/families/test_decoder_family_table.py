"""Published `config.json` files, in the words of transformers 4, become our Config."""

import numpy as np
import pytest

from jaxmem.architectures.llama import Config, per_layer

GEMMA3_1B = {
    "model_type": "gemma3_text",
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "vocab_size": 262144,
    "eos_token_id": [1, 106],
}
LLAMA31_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "vocab_size": 128256,
    "eos_token_id": 128009,
}
QWEN25 = {
    **LLAMA31_8B,
    "model_type": "qwen2",
    "rope_scaling": None,
    "sliding_window": 32768,
    "use_sliding_window": False,
    "max_window_layers": 21,
}


def test_gemma_has_five_sliding_layers_to_each_full_one():
    config = Config.from_hf(GEMMA3_1B)
    assert config.local == tuple(i % 6 != 5 for i in range(26))
    assert (config.window, config.theta, config.local_theta) == (512, 1e6, 1e4)
    assert (config.tied, config.eos, config.embed_scale) == (True, (1, 106), 1152**0.5)


def test_the_text_part_of_a_multimodal_gemma_is_read():
    inner = {k: GEMMA3_1B[k] for k in ("model_type", "hidden_size", "intermediate_size")}
    config = Config.from_hf({"model_type": "gemma3", "text_config": inner | {
        "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    }})  # fmt: skip
    assert (config.heads, config.kv_heads, config.vocab) == (8, 4, 262_208)
    assert config.rope_scaling == (8.0,)


def test_llama_keeps_its_rope_scaling():
    config = Config.from_hf(LLAMA31_8B)
    assert config.rope_scaling == (8.0, 1.0, 4.0, 8192.0)
    assert (config.head_dim, config.tied, config.eos) == (128, False, (128009,))


def test_qwen_slides_only_when_told_to_and_from_the_layer_it_names():
    assert Config.from_hf(QWEN25).local == ()
    sliding = Config.from_hf(QWEN25 | {"use_sliding_window": True})
    assert sliding.local == tuple(i >= 21 for i in range(32))


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "minimax"},
        {"hidden_act": "mish"},
        {"rope_scaling": {"type": "mrope", "factor": 4.0}},
        {"rope_scaling": {"type": "yarn", "factor": 4.0, "beta": 2.0}},
        {"rope_scaling": {"type": "dynamic"}},
        {"rope_scaling": {"rope_type": "linear", "factor": 4.0, "mscale": 2.0}},
        {"rope_scaling": {"rope_type": "linear", "type": "default", "factor": 4.0}},
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
        {"partial_rotary_factor": 0.5},
        {"mlp_bias": 1},
        {"final_logit_softcapping": 30.0},
        {"sliding_window": 64},
        {"layer_types": ["chunked_attention"] * 32},
        {"layer_types": ["full_attention"] * 31},
        {"alibi": True},
        {"is_causal": False},
        {"quantization": {"bits": 4, "group_size": 64}},
        {"logit_scale": 0.5},
    ],
)
def test_an_option_that_is_not_computed_is_refused_by_name(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        Config.from_hf(LLAMA31_8B | change)


@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": 2**31},
        {"num_attention_heads": 0},
        {"num_key_value_heads": "8"},
        {"hidden_size": True},
        {"vocab_size": 128256.5},
        {"rms_norm_eps": "1e-5"},
        {"rope_theta": 0},
        {"rope_theta": float("nan")},
        {"rope_scaling": "linear"},
        {"rope_scaling": {"rope_type": "linear"}},
        {"tie_word_embeddings": "no"},
        {"eos_token_id": {"id": 2}},
        {"text_config": [1]},
    ],
)
def test_a_value_of_the_wrong_type_or_range_is_refused_by_name(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        Config.from_hf(LLAMA31_8B | change)


def test_options_that_change_nothing_are_passed_over():
    harmless = {
        "torch_dtype": "bfloat16", "attention_dropout": 0.1, "pretraining_tp": 2, "pad_token_id": 0,
        "_name_or_path": "x", "transformers_version": "4.44", "transformers.js_config": {"a": 1},
        "partial_rotary_factor": 1.0, "layer_types": ["full_attention"] * 32, "use_mrope": False,
        "num_experts": 0,
    }  # fmt: skip
    assert Config.from_hf(LLAMA31_8B | harmless) == Config.from_hf(LLAMA31_8B)


def test_the_end_tokens_of_both_parts_of_a_multimodal_config_are_read():
    text = GEMMA3_1B | {"eos_token_id": 1, "bos_token_id": None}
    whole = {"model_type": "gemma3", "text_config": text, "eos_token_id": [1, 106]}
    config = Config.from_hf(whole | {"vision_config": {"hidden_size": 8}, "bos_token_id": 2})
    assert (config.eos, config.bos) == ((1, 106), 2)
    with pytest.raises(ValueError, match="logit_scale"):
        Config.from_hf(whole | {"logit_scale": 2.0})


def test_mistral_slides_as_transformers_does_where_its_config_is_silent():
    config = {k: v for k, v in LLAMA31_8B.items() if k != "rope_scaling"} | {
        "model_type": "mistral"
    }
    assert Config.from_hf(config).window == 4096
    assert Config.from_hf(config | {"sliding_window": None}).window == 0


def test_a_missing_size_is_named():
    with pytest.raises(ValueError, match="hidden_size"):
        Config.from_hf({k: v for k, v in LLAMA31_8B.items() if k != "hidden_size"})


LONG = {"rope_type": "longrope", "short_factor": [1.0, 2.0], "long_factor": [1.0, 2.0]}
ROPE = {"model_type": "llama", "vocab_size": 8, "hidden_size": 4, "intermediate_size": 8}
ROPE |= {"num_hidden_layers": 1, "num_attention_heads": 1}


def test_longrope_of_one_set_of_factors_divides_the_frequencies():
    scaling = LONG | {"attention_factor": 1.0, "factor": 2.0}
    config = Config.from_hf(ROPE | {"rope_scaling": scaling})
    assert config.rope_factors == (1.0, 2.0) and config.rope_scaling == ()
    np.testing.assert_allclose(per_layer(config)["frequencies"][0], [1, 0.01 / 2], rtol=1e-6)


def test_longrope_has_divisors_for_texts_beyond_the_original_context():
    scaling = LONG | {"long_factor": [3.0, 4.0], "original_max_position_embeddings": 16}
    config = Config.from_hf(ROPE | {"rope_scaling": scaling, "max_position_embeddings": 64})
    assert config.rope_magnitude == pytest.approx((1 + np.log(4) / np.log(16)) ** 0.5)
    short, long = (per_layer(config, n)["frequencies"][0] for n in (16, 17))
    np.testing.assert_allclose([short, long], [[1, 0.01 / 2], [1 / 3, 0.01 / 4]], rtol=1e-6)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"long_factor": [1.0]}, "rope_long_factors has 1 values, expected 2"),
        ({"long_factor": []}, "long_factor is .*a list of numbers"),
        ({"short_factor": [1.0, 0.0]}, "short_factor is .*above 0"),
        ({"short_factor": 2.0}, "short_factor is .*a list of numbers"),
        ({"attention_factor": 0.0}, "attention_factor is 0.0, expected .*above 0"),
    ],
)
def test_longrope_that_is_not_computed_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        Config.from_hf(ROPE | {"rope_scaling": LONG | change})


@pytest.mark.parametrize("factors", [(1.0,), (1.0, 0.0), (1.0, -2.0)])
def test_rope_factors_are_one_above_0_for_each_frequency(factors):
    with pytest.raises(ValueError, match="rope_factors"):
        Config(vocab=8, width=4, ffn=8, layers=1, heads=1, kv_heads=1, head_dim=4,
               rope_factors=factors)  # fmt: skip


def test_gelu_of_the_first_gemma_is_by_tanh_and_later_ones_do_not_read_it():
    first, later = (ROPE | {"model_type": x} for x in ("gemma", "gemma2"))
    gelu = {"hidden_act": "gelu"}
    assert Config.from_hf(first | gelu) == Config.from_hf(first)
    assert Config.from_hf(first | gelu | {"hidden_activation": "gelu_pytorch_tanh"}).gelu
    assert Config.from_hf(later | gelu) == Config.from_hf(later)
    assert Config.from_hf(later | {"hidden_activation": "gelu"}).activation == "gelu"
    with pytest.raises(ValueError, match="hidden_activation is 'gelu', expected None or 'gelu_py"):
        Config.from_hf(first | {"hidden_activation": "gelu"})
