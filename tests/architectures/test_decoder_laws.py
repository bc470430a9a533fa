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

# sandwich norms, soft caps and windows; one norm for both parts, norms of heads, interleaved pairs;
# ALiBi and a norm of the embedding; learned positions and one head of keys; experts with an expert
# that all tokens share; experts in groups, the first layer without, and latents
RECURRENT = ("falcon_h1", "recurrent_gemma", "rwkv", "qwen3_next")
OTHERS = ("cohere", "gpt_bigcode", "qwen2_moe", *RECURRENT)
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
    assert len(kernels) >= 5
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


@pytest.mark.parametrize("name", ["bloom", "deepseek_v3"])
def test_statistics_reach_every_kernel(name):
    model, _, ids, uses = encoded(name)
    stats = jm.stats(model.apply, model.params, [(ids,)])
    assert {path for path in uses if path.endswith("kernel")} <= set(stats)
