"""Decoders whose layers carry a state load, generate, and refuse what they do not compute."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from cheap_jit import jit
from drawn_weights import drawn
from reference_models import FOLDER, member

import jaxmem as jm
from jaxmem.architectures import decoder
from jaxmem.architectures.configs.recurrence import Recurrence
from jaxmem.interop.gguf_metadata import metadata
from jaxmem.models import KVCache, Model

MAMBA = {"model_type": "mamba", "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2}
MAMBA2 = MAMBA | {"model_type": "mamba2", "num_heads": 8, "head_dim": 8, "n_groups": 2}
ATTENTION = MAMBA | {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
CONVOLVED = ("jamba", "falcon_h1", "qwen3_next")


def _hybrid(kind):
    return ATTENTION | {"model_type": kind}


def greedy(model, prompt, count):
    """The most probable tokens after a prompt, with all of the text computed again for each."""
    ids, apply = list(prompt), jit(model.apply)
    for _ in range(count):
        padded = np.pad(ids, (0, len(prompt) + count - len(ids)))
        ids.append(int(apply(model.params, padded[None])[0, len(ids) - 1].argmax()))
    return ids[len(prompt) :]


def test_a_folder_loads_generates_as_without_a_cache_and_is_saved(tmp_path):
    file = np.load(FOLDER / "decoders/mamba.npz")
    (tmp_path / "config.json").write_text(str(file["config"]))
    tensors = {n: drawn(n, shape) for n, shape in json.loads(str(file["shapes"])).items()}
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    model = jm.models.load(tmp_path)
    prompt = file["ids"][0, :5]
    generated = jm.models.generate(model, prompt, max_new_tokens=3)
    assert generated.ids[0].tolist() == greedy(model, prompt, 3)
    model.save(tmp_path / "saved")
    saved = jm.models.load(tmp_path / "saved")
    assert saved.config == model.config
    jax.tree.map(np.testing.assert_array_equal, saved.params, model.params)


@pytest.mark.parametrize("name", ["falcon_h1", "rwkv"])
def test_a_text_in_two_pieces_through_a_used_cache_gives_the_same_logits(name):
    config, params, file, _ = member(name)
    ids = jnp.asarray(file["ids"], jnp.int32)
    used = jax.tree.map(lambda x: x + 1.5, config.cache(1, ids.shape[1]))
    apply = jit(Model(config, params, None, name).apply, static_argnums=3)
    first, cache = apply(params, ids[:, :13], used, 0)
    second, _ = apply(params, ids[:, 13:], cache, 13)
    got = np.concatenate([first, second], axis=1)
    atol = 1e-4 * np.abs(file["logits"]).max()
    np.testing.assert_allclose(got, file["logits"], rtol=0, atol=atol)


def test_an_rwkv_in_bf16_generates_what_it_generates_without_a_cache():
    config, params, file, _ = member("rwkv")
    model = Model(config, jax.tree.map(lambda x: x.astype(jnp.bfloat16), params), None, "rwkv")
    prompt = file["ids"][0, :5]
    generated = jm.models.generate(model, prompt, max_new_tokens=3)
    assert generated.ids[0].tolist() == greedy(model, prompt, 3)


@pytest.mark.parametrize("name", ["mamba", "rwkv", "recurrent_gemma", "lfm2", "qwen3_next"])
def test_states_in_bf16_keep_their_types_and_shapes(name):
    config, params, _, _ = member(name)
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    cache = config.cache(2, 16, jnp.bfloat16)
    run = Model(config, params, None, name).apply
    logits, after = jax.eval_shape(run, params, jnp.zeros((2, 3), jnp.int32), cache, 4)
    assert logits.dtype == jnp.float32
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert shapes(after) == shapes(cache)


@pytest.mark.slow
def test_fit_halves_the_bytes_and_the_logits_stay_near():
    config, params, file, _ = member("mamba2")
    ids = jnp.asarray(file["ids"], jnp.int32)
    fitted = jm.fit(Model(config, params, None, "mamba2"), jm.nbytes(params) // 2)
    assert jm.nbytes(fitted.params) <= jm.nbytes(params) // 2
    logits = jit(fitted.model.apply)(fitted.params, ids)
    assert float(jm.divergence(file["logits"], logits)) < 0.05


def test_layers_of_published_hybrids_are_where_they_are():
    lfm2 = {"model_type": "lfm2", "vocab_size": 65536, "hidden_size": 1024, "num_heads": 16}
    lfm2 |= {"num_attention_heads": 16, "num_key_value_heads": 8, "num_hidden_layers": 16}
    lfm2 |= {"block_ff_dim": 6656, "full_attn_idxs": [2, 5, 8, 10, 12, 14], "norm_eps": 1e-5}
    config = decoder.Config.from_hf(lfm2 | {"block_dim": 1024, "conv_L_cache": 3})
    attention = [i for i, state in enumerate(config.recurrence.layers) if not state]
    assert (config.ffn, attention) == (4608, [2, 5, 8, 10, 12, 14])
    gemma = decoder.Config.from_hf(_hybrid("recurrent_gemma") | {"num_hidden_layers": 5})
    assert gemma.recurrence.layers == (True, True, False, True, True)
    assert (gemma.ffn, gemma.rotary_dim, gemma.window) == (24, 4, 2048)
    jamba = decoder.Config.from_hf(_hybrid("jamba") | {"num_hidden_layers": 8})
    assert [i for i, state in enumerate(jamba.recurrence.layers) if not state] == [4]
    assert jamba.mixture.dense == (True, False) * 4


@pytest.mark.parametrize("hf", [MAMBA, MAMBA2])
def test_sizes_that_a_config_leaves_out_are_those_of_transformers(hf):
    config = decoder.Config.from_hf(hf | {"architectures": ["M"], "time_step_min": 0.001})
    r = config.recurrence
    assert (r.channels, r.taps, r.conv_bias, r.in_bias) == (64, 4, True, False)
    assert (r.state, r.step_rank) == ((16, 2) if r.kind == "mamba" else (128, 0))
    assert config.tied == (r.kind == "mamba")


def test_what_a_recurrence_does_not_compute_is_refused_by_name():
    refused = {
        "hidden_act": (MAMBA | {"hidden_act": "relu"}),
        "intermediate_size": (MAMBA | {"intermediate_size": 65}),
        "num_heads": (MAMBA2 | {"num_heads": 3}),
        "time_step_limit": (MAMBA2 | {"time_step_limit": [0.1]}),
        "mystery": (MAMBA | {"mystery": 2}),
        "layer_norm_epsilon": (MAMBA | {"model_type": "rwkv", "layer_norm_epsilon": 1e-3}),
        "mamba_inner_layernorms": (_hybrid("jamba") | {"mamba_inner_layernorms": False}),
        "attention_in_multiplier": (
            _hybrid("falcon_h1") | {"attention_in_multiplier": 2.0, "attention_bias": True}
        ),
        "block_types": (_hybrid("recurrent_gemma") | {"block_types": ["mamba"]}),
        "conv_dim": (_hybrid("lfm2") | {"conv_dim": 16}),
        "layer_types": (_hybrid("qwen3_next") | {"layer_types": ["conv", "conv"]}),
    }
    relu = [("hidden_act", _hybrid(kind) | {"hidden_act": "relu"}) for kind in CONVOLVED]
    for name, hf in (*refused.items(), *relu):
        with pytest.raises(ValueError, match=name):
            decoder.Config.from_hf(hf)
    config = decoder.Config.from_hf(_hybrid("lfm2") | {"full_attn_idxs": [1]})
    with pytest.raises(ValueError, match="cannot say layers with a recurrence"):
        metadata(config)
    config = decoder.Config.from_hf(MAMBA2)
    with pytest.raises(NotImplementedError, match="recurrent layers"):
        KVCache(8).empty(config, 1, 64, jnp.float32)
    with pytest.raises(ValueError, match="recurrence"):
        jm.structured_pruning.remove_layers(Model(config, {}, None, "m"), [1])


@pytest.mark.parametrize(
    "kind, change",
    [
        ("rwkv", {"taps": 4}),
        ("rwkv", {"state": 5}),
        ("delta", {"in_bias": True}),
        ("convolution", {"state": 4}),
        ("gated", {"groups": 2}),
        ("mamba", {"heads": 4}),
    ],
)
def test_an_option_that_a_recurrence_does_not_compute_is_refused_by_name(kind, change):
    rank = {"step_rank": 2} if kind == "mamba" else {}
    with pytest.raises(ValueError, match=f"^{next(iter(change))} is .* with kind '{kind}'"):
        Recurrence(kind, 16, **rank, **change)


def test_options_of_attention_and_of_an_mlp_are_refused_where_no_layer_has_one():
    sizes = dict(vocab=64, width=32, layers=2, heads=0, kv_heads=0, head_dim=0, positions="none")
    alone = Recurrence("mamba", 64, 16, step_rank=2, alone=True)
    for name, value in {"qkv_bias": True, "query_scale": 2.0, "activation": "relu"}.items():
        with pytest.raises(ValueError, match=f"^{name} is .* with 'mamba', which computes none"):
            decoder.Config(**sizes, ffn=0, recurrence=alone, **{name: value})
    with pytest.raises(ValueError, match=r"^mlp_bias is True with 'rwkv'"):
        rwkv = Recurrence("rwkv", 32)
        decoder.Config(**sizes, ffn=64, recurrence=rwkv, gated=False, mlp_bias=True)
