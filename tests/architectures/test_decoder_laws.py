"""Decoders of unlike mechanisms encode, shard, and keep 8-bit caches as every model here does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cheap_jit import jit
from reference_models import member

import jaxmem as jm
from jaxmem.architectures import decoder
from jaxmem.models import KVCache, Model
from jaxmem.models.rescaling import channel_links, leaf_at, rescale

# sandwich norms, soft caps and windows; ALiBi and a norm of the embedding; learned positions and
# one head of keys; experts with an expert that all tokens share; experts in groups, the first layer
# without, and latents
RECURRENT = ("falcon_h1", "recurrent_gemma", "rwkv", "qwen3_next")
OTHERS = ("gpt_bigcode", "qwen2_moe", *RECURRENT)
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in OTHERS]
LAWS = ["gemma2", "bloom", "deepseek_v3", "mamba", *SLOW]
INT4 = jm.Int(4, group=8)


@functools.cache
def encoded(name):
    """(the model, its params with every kernel in 4 bits, ids, the uses of its weights)."""
    config, params, file, _ = member(name)
    model = Model(config, params, None, name)
    ids = jnp.asarray(file["ids"], jnp.int32)
    uses = jm.uses(model.apply, params, ids)
    plan = jm.choose(params, {".*kernel": INT4})
    return model, jit(lambda params: jm.encode(params, plan, uses=uses))(params), ids, uses


@pytest.mark.parametrize("name", LAWS)
def test_every_kernel_is_used_in_one_product(name):
    _, _, _, uses = encoded(name)
    kernels = {path: uses[path] for path in uses if path.endswith("kernel")}
    assert len(kernels) >= (5 if name == "mamba" else 6)
    for path, products in kernels.items():
        assert [use.op for use in products] == ["dot_general"], path


@pytest.mark.parametrize("name", LAWS)
def test_encoded_on_four_devices_it_computes_what_its_decoded_weights_do(name):
    model, enc, ids, _ = encoded(name)
    want = jit(lambda enc: model.apply(jm.decode(enc), ids))(enc)
    mesh = jm.mesh(fsdp=2, tensor=2)
    placed = jm.shard(enc, jm.shardings(enc, mesh, jm.layouts.fsdp_tensor(model.config, mesh)))
    got = jit(model.apply)(placed, ids)
    assert np.abs(got - want).max() <= 1e-4 * np.abs(want).max()


def test_a_cache_of_8_bits_gives_nearly_the_same_logits():
    model, _, ids, _ = encoded("gemma2")
    prompt = jnp.pad(ids, ((0, 0), (0, 64 - ids.shape[1])))
    cache = KVCache(8).empty(model.config, 1, 64, jnp.float32)
    got, _ = jit(model.apply)(model.params, prompt, cache, 0)
    want = member("gemma2")[2]["logits"]
    assert np.abs(got[:, : ids.shape[1]] - want).max() <= 0.05 * np.abs(want).max()


@pytest.mark.slow
def test_a_step_of_as_many_heads_of_keys_as_of_queries_copies_no_cache_on_a_tpu():
    pytest.importorskip("libtpu")
    sizes = dict(vocab=256, width=2048, ffn=512, layers=2, heads=16, kv_heads=16, head_dim=128)
    config = decoder.Config(**sizes)
    net, ids = decoder.module(config), jax.ShapeDtypeStruct((8, 1), jnp.int32)
    params = jax.eval_shape(net.init, jax.random.key(0), ids)
    params = jax.tree.map(lambda x: x.update(dtype=jnp.bfloat16), params)
    cache = jax.eval_shape(lambda: config.cache(8, 4096, jnp.bfloat16))
    at = jax.ShapeDtypeStruct((), jnp.int32)
    options = dict(donate_argnums=2, device="tpu v5e:1x1")
    assert jm.memory(net.apply, params, ids, cache, at, **options).temp < jm.nbytes(cache) / 100


def test_a_cache_of_few_bits_is_refused_for_latents():
    model, _, ids, _ = encoded("deepseek_v3")
    cache = KVCache(8).empty(model.config, 1, 64, jnp.float32)
    with pytest.raises(NotImplementedError, match="latents are cached in floats only"):
        model.apply(model.params, ids[:, :1], cache, 0)


@functools.cache
def statistics(name):
    """The moments of the inputs of a member's weights, on its own ids."""
    model, _, ids, _ = encoded(name)
    return jm.stats(model.apply, model.params, [(ids,)])


def test_statistics_reach_every_kernel():
    uses = encoded("deepseek_v3")[3]
    assert {path for path in uses if path.endswith("kernel")} <= set(statistics("deepseek_v3"))


# Weights of latents, and of experts, of which some see no token.
@pytest.mark.parametrize("path", ["attn/kv_down/kernel", "attn/k_up", "mlp/experts/down/kernel"])
def test_gptq_errs_less_on_what_a_weight_is_fed_than_rounding_does(path):
    model, _, _, uses = encoded("deepseek_v3")
    path, stats = f"layers_1/{path}", statistics("deepseek_v3")
    codec, tree = jm.Int(3, group=4), {path: leaf_at(model.params, path)}

    @jit
    def error(tree, stats):
        plan = {"rounded": codec, "solved": jm.GPTQ(codec)}
        encode = lambda codec: jm.encode(tree, {path: codec}, uses=uses, stats=stats)
        errors = {name: jm.decode(encode(codec))[path] - tree[path] for name, codec in plan.items()}
        moments = stats[path].second
        product = lambda e: jnp.einsum("...kn,...kl,...ln->", e, moments, e)
        return {name: product(e) for name, e in errors.items()}

    errors = error(tree, {path: stats[path]})
    assert 0 < errors["solved"] < 0.95 * errors["rounded"]


@pytest.mark.slow
def test_a_fit_of_a_mixture_with_data_errs_less_than_one_without():
    config, params, _, _ = member("qwen3_moe")
    model = Model(config, params, None, "qwen3_moe")
    text = np.random.default_rng(1).integers(0, config.vocab, 8 * config.context)
    rows = text.reshape(8, -1).astype(np.int32)
    nbytes, options = int(0.3 * jm.nbytes(params)), jm.FitOptions(tune_steps=0)
    dense = model.apply(params, rows)
    fits = [jm.fit(model, nbytes, calibrate=text, options=options), jm.fit(model, nbytes)]
    apply = jit(lambda params: model.apply(params, rows))
    errors = [float(jnp.square(apply(jm.decode(x.params)) - dense).mean()) for x in fits]
    assert errors[0] < 0.8 * errors[1] and all(x.nbytes <= nbytes for x in fits)
    assert np.isfinite(apply(fits[0].params)).all()


@pytest.mark.parametrize("name", ["qwen2_moe", "deepseek_v3", "cohere"])
def test_another_basis_and_other_scales_leave_the_function(name):
    config, params, file, _ = member(name)
    model, rng = Model(config, params, None, name), np.random.default_rng(0)
    scales = {}
    for link in channel_links(config):
        *stack, channels, _ = leaf_at(params, link.readers[0]).shape
        scales[link] = np.exp(rng.normal(size=(*stack, channels // link.repeats))).astype("f4")
    changed = rescale(model, scales)
    has_values, has_means = not config.latent, config.norm == "layer"
    changed = jm.models.rotate_heads(changed, basis="random") if has_values else changed
    changed = changed if has_means else jm.models.rotate(changed)
    got, expected = jit(changed.apply)(changed.params, file["ids"]), file["logits"]
    np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max(), rtol=0)


def test_mechanisms_that_another_basis_does_not_pass_are_named():
    def refused(name, change, message):
        config, params, _, _ = member(name)
        with pytest.raises(ValueError, match=message):
            change(Model(config, params, None, name))

    refused("cohere", jm.models.rotate, "cohere cannot be rotated: it sets norm = layer")
    refused("gemma2", jm.models.rotate, "sets post_norms = True")
    refused("deepseek_v3", jm.models.rotate_heads, "values that are .* made of latents")
    refused("mamba", jm.models.rotate, "sets recurrence = ")
    refused("mamba", lambda model: jm.models.awq(model, {}, INT4), "sets recurrence are not known")
