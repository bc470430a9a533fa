"""GPT-2 computes what transformers computes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from reference_models import reference

from jaxmem.architectures import gpt2


@pytest.fixture(scope="module")
def model():
    return reference("gpt2", gpt2, prefix="transformer.")


def test_logits_equal_the_reference(model):
    config, params, file = model
    logits = jax.jit(gpt2.module(config).apply)({"params": params}, file["ids"])
    assert np.abs(logits - file["logits"]).max() <= 1e-4


def test_a_cache_filled_in_pieces_gives_the_same_logits(model):
    config, params, file = model
    step = jax.jit(gpt2.module(config).apply)
    cache, logits = config.cache(batch=2, length=30), []
    for start in range(0, 24, 8):
        piece = file["ids"][:, start : start + 8]
        out, cache = step({"params": params}, piece, cache, jnp.int32(start))
        logits.append(out)
    assert np.abs(np.concatenate(logits, axis=1) - file["logits"]).max() <= 1e-4


def test_recipes_name_every_parameter_with_its_shape(model):
    config, _, file = model
    init = jax.eval_shape(gpt2.module(config).init, jax.random.key(0), file["ids"])["params"]
    shapes = {path: x.shape for path, x in flatten_dict(init, sep="/").items()}
    assert shapes == {path: r.shape for path, r in gpt2.weights(config).items()}


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "gptj"},
        {"activation_function": "relu"},
        {"add_cross_attention": True},
        {"n_head": 7},
    ],
)
def test_what_is_not_computed_is_refused(change):
    hf = {"model_type": "gpt2", "vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
    assert gpt2.Config.from_hf(hf).ffn == 128
    with pytest.raises(ValueError, match=r"expected|does not"):
        gpt2.Config.from_hf(hf | change)


def test_an_untied_head_of_its_own_makes_the_logits(model):
    _, params, file = model
    untied = gpt2.Config.from_hf(json.loads(str(file["config"])) | {"tie_word_embeddings": False})
    assert gpt2.weights(untied)["head/kernel"].names == ("lm_head.weight",)
    head = {"kernel": 2 * params["embed"]["embedding"].T}
    ids = file["ids"][:1, :4]
    doubled = gpt2.module(untied).apply({"params": params | {"head": head}}, ids)
    np.testing.assert_allclose(doubled, 2 * file["logits"][:1, :4], atol=2e-4)


@pytest.mark.parametrize("option", ["scale_attn_weights", "scale_attn_by_inverse_layer_idx"])
def test_other_scales_of_attention_are_those_of_scaled_queries(option, model):
    config, params, file = model
    hf = json.loads(str(file["config"]))
    scaled = gpt2.Config.from_hf(hf | {option: not hf[option]})
    factor = {"scale_attn_weights": [config.head_dim**0.5] * 2}.get(option, [1.0, 0.5])
    queries = (jnp.arange(3 * config.width) < config.width)[None]  # of queries, keys and values
    by_layer = jnp.where(queries, jnp.asarray(factor, jnp.float32)[:, None], 1.0)
    qkv = params["layers"]["attn"]["qkv"]
    changed = {"kernel": qkv["kernel"] * by_layer[:, None], "bias": qkv["bias"] * by_layer}
    layers = params["layers"] | {"attn": params["layers"]["attn"] | {"qkv": changed}}
    ids = file["ids"][:1, :6]
    apply = lambda c, p: gpt2.module(c).apply({"params": p}, ids)
    want = apply(config, params | {"layers": layers})
    np.testing.assert_allclose(apply(scaled, params), want, atol=1e-4)
    assert np.abs(want - file["logits"][:1, :6]).max() > 1e-2


@pytest.mark.parametrize("length, position", [(33, 0), (8, 25)])
def test_tokens_past_the_table_of_positions_are_refused_when_traced(length, position, model):
    config, params, _ = model
    cache = config.cache(batch=1, length=64)
    net, ids = gpt2.module(config), jax.ShapeDtypeStruct((1, length), jnp.int32)
    with pytest.raises(ValueError, match=f"{length} tokens from position {position}.* of 32"):
        jax.eval_shape(lambda p, i: net.apply({"params": p}, i, cache, position), params, ids)


@pytest.mark.parametrize("change", [{"n_layer": 2**31}, {"n_head": 0}, {"n_embd": "32"},
    {"scale_attn_weights": 0.5}, {"layer_norm_epsilon": None, "alibi": True}])  # fmt: skip
def test_a_value_that_is_not_computed_is_refused_by_name(change):
    hf = {"model_type": "gpt2", "vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
    with pytest.raises(ValueError, match=list(change)[-1]):
        gpt2.Config.from_hf(hf | change)
