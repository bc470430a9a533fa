"""A cache in few bits is near the dense one, takes the bytes it states, is updated in place."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cheap_jit import jit

import jaxmem as jm
from jaxmem.architectures import gpt2, llama
from jaxmem.core.hadamard import hadamard
from jaxmem.kv_cache.cached_attention import attend_through
from jaxmem.kv_cache.quantized import BLOCK_TOKENS
from jaxmem.models import KVCache, Model, generate

CONFIG = llama.Config(
    vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8, context=256
)
V5E = "tpu v5e:1x1"
each_bits = pytest.mark.parametrize("bits", [8, 4, 2])


@functools.cache
def net(config=CONFIG):
    module = llama.module(config) if config.family == "llama" else gpt2.module(config)
    params = jit(module.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    return Model(config, params, None, "random")


def states(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), (1, 2, *shape))


def error(bits, rotate=False, width=8):
    """The error of 8 steps after 2 · BLOCK_TOKENS tokens, against a dense cache."""
    q, k, v = (states(2 * BLOCK_TOKENS + 8, width, seed=s) for s in range(3))
    k = k.at[..., 2].multiply(9)  # a large channel

    @jit
    def run(cache):
        at = lambda x, i: jax.lax.dynamic_slice_in_dim(x, i, 1, 2)
        first = (x[:, :, : 2 * BLOCK_TOKENS] for x in (q, k, v))
        cache, _ = attend_through(cache, 1, 0, *first, 10**6, 0.3)
        step = lambda c, i: attend_through(c, 1, i, *(at(x, i) for x in (q, k, v)), 10**6, 0.3)
        return jax.lax.scan(step, cache, 2 * BLOCK_TOKENS + jnp.arange(8, dtype=jnp.int32))[1]

    config = dataclasses.replace(CONFIG, head_dim=width)
    dense, cache = config.cache(1, 3 * BLOCK_TOKENS), KVCache(bits, rotate=rotate)
    want, got = run(dense), run(cache.empty(config, 1, 3 * BLOCK_TOKENS, jnp.float32))
    return float(jnp.abs(got - want).max())


# a byte holds channels of a head of 8, and tokens where a head has 128
@pytest.mark.parametrize(("width", "bound"), [(8, 0.02), (128, 0.05)])
def test_more_bits_are_nearer_to_the_dense_cache(width, bound):
    errors = [error(bits, width=width) for bits in (8, 4, 2)]
    assert errors[0] < bound and errors == sorted(errors) and errors[1] < 15 * bound


@pytest.mark.parametrize("width", [8, 12])  # the matrix of order 12 is not symmetric
def test_a_rotated_cache_is_the_same_function(width):
    assert error(8, rotate=True, width=width) < 0.05
    h = hadamard(width)
    np.testing.assert_allclose(h @ h.T, np.eye(width), atol=1e-6)


@each_bits
def test_its_bytes_are_those_it_states(bits):
    cache = KVCache(bits).empty(CONFIG, 3, 2 * BLOCK_TOKENS, jnp.float32)
    heads, width = CONFIG.layers * 3 * CONFIG.kv_heads, CONFIG.head_dim
    ranges = 4 * width / BLOCK_TOKENS + 4
    recent = 2 * BLOCK_TOKENS * width * 4
    assert jm.nbytes(cache) == heads * (2 * BLOCK_TOKENS * (width * bits / 4 + ranges) + recent)


@pytest.mark.parametrize("config", [CONFIG, gpt2.Config(vocab=64, width=32, layers=2, heads=4)])
@pytest.mark.parametrize("prompt", [[3, 1, 4], list(range(60)), list(range(64))])
def test_eight_bits_write_what_a_dense_cache_writes(config, prompt):
    model = net(config)
    got = generate(model, prompt, cache=KVCache(8), max_new_tokens=8).ids
    assert (got == generate(model, prompt, max_new_tokens=8).ids).mean() > 0.8


def test_reading_all_at_once_and_step_by_step_agree():
    model, ids = net(), jax.random.randint(jax.random.key(1), (1, 2 * BLOCK_TOKENS), 0, 64)
    empty = KVCache(8).empty(CONFIG, 1, 2 * BLOCK_TOKENS, jnp.float32)
    apply = jit(model.apply)
    whole = apply(model.params, ids)
    got, cache = apply(model.params, ids[:, :BLOCK_TOKENS], empty, 0)
    np.testing.assert_allclose(got, whole[:, :BLOCK_TOKENS], atol=0.05)
    for i in range(BLOCK_TOKENS, BLOCK_TOKENS + 3):
        got, cache = apply(model.params, ids[:, i : i + 1], cache, jnp.int32(i))
        np.testing.assert_allclose(got[:, 0], whole[:, i], atol=0.05)


def test_a_step_copies_no_cache():
    cache = jax.eval_shape(lambda: KVCache(4).empty(CONFIG, 1, 8 * BLOCK_TOKENS, jnp.float32))
    model = net()
    params = jax.eval_shape(lambda: model.params)
    ids, at = (jax.ShapeDtypeStruct(s, jnp.int32) for s in ((1, 1), ()))
    step = jax.jit(model.apply, donate_argnums=2).lower(params, ids, cache, at).compile()
    assert step.memory_analysis().alias_size_in_bytes >= jm.nbytes(cache)


@pytest.mark.slow
def test_a_step_on_a_tpu_decodes_no_whole_layer():
    pytest.importorskip("libtpu")
    config = dataclasses.replace(CONFIG, heads=8, kv_heads=8, head_dim=128)
    params = jax.eval_shape(llama.module(config).init, jax.random.key(0), jnp.zeros((1, 1), "i4"))
    cache = jax.eval_shape(lambda: KVCache(4).empty(config, 4, 8192, jnp.bfloat16))
    ids, at = (jax.ShapeDtypeStruct(s, jnp.int32) for s in ((4, 1), ()))
    m = jm.memory(llama.module(config).apply, params, ids, cache, at, donate_argnums=2, device=V5E)
    assert m.temp < 4 * (4 * 8 * 8192 * 128) / 2  # of the keys in float32


def test_what_it_cannot_hold_is_refused():
    with pytest.raises(ValueError, match="2, 4 or 8 bits, got 3"):
        KVCache(3)
    odd = llama.Config(**CONFIG.to_dict() | {"head_dim": 6})
    with pytest.raises(ValueError, match="heads of width 6"):
        KVCache(4, rotate=True).empty(odd, 1, BLOCK_TOKENS, jnp.float32)
    cache = KVCache(4).empty(CONFIG, 1, BLOCK_TOKENS, jnp.float32)
    with pytest.raises(ValueError, match="expected 1 or a multiple of 64"):
        net().apply(net().params, jnp.zeros((1, 5), jnp.int32), cache, 0)
