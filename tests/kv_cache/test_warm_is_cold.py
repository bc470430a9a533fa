"""What follows a prefix found in any tier is what follows reading it, bit for bit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmem as jm
from jaxmem.architectures import llama
from jaxmem.models import Model

SIZE, CHUNK, MOST = 8, 16, 8
CONFIG = llama.Config(vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8)


@functools.cache
def model():
    shapes = jax.eval_shape(
        llama.module(CONFIG).init, jax.random.key(0), jax.ShapeDtypeStruct((1, 8), jnp.int32)
    )["params"]
    draw = np.random.default_rng(0).standard_normal
    params = jax.tree.map(lambda x: jnp.asarray(draw(x.shape, np.float32) * 0.3), shapes)
    return Model(CONFIG, params, None, "random")


@jax.jit
def read_chunk(params, pool, ids, tokens):
    pool, ok = jm.pages.alloc(pool, tokens[None])
    logits, pool = model().apply(params, ids, pool, rows=jnp.zeros(1, jnp.int32))
    return logits, pool, ok.all()


def padded(ids):
    return np.array([*ids, *[0] * (MOST - len(ids))], np.int32)


def read(cache, pool, prompt):
    """Logits of the last chunk, and the pool, in which no row is left."""
    hit = cache.match(prompt)
    pool, new, _ = jm.pages.reserve(pool, len(hit.blobs), most=MOST)
    new = [int(i) for i in new if i]
    for page, blob in zip(new, hit.blobs):
        pool = jm.pages.put(pool, np.array([page], np.int32), blob)
    pool, _ = jm.pages.attach(pool, 0, padded([*hit.ids, *new]), hit.tokens)
    pool = jm.pages.drop(pool, padded(new))
    for start in range(hit.tokens, len(prompt), CHUNK):
        ids = np.asarray(prompt[start : start + CHUNK], np.int32)
        row = np.pad(ids, (0, CHUNK - len(ids)))[None]
        logits, pool, ok = read_chunk(model().params, pool, row, jnp.int32(len(ids)))
        assert ok
    take = lambda page: jax.device_get(jm.pages.take(pool, np.array([page], np.int32)))
    moves = cache.insert(prompt, np.asarray(pool.table)[0, : len(prompt) // SIZE], take=take)
    pool = jm.pages.drop(jm.pages.hold(pool, padded(moves.held)), padded(moves.freed))
    pool = jm.pages.release(pool, np.array([0], np.int32))
    return np.asarray(logits)[0, : len(ids)], pool


@pytest.mark.parametrize("bits", [None])
def test_warm_is_cold_through_each_tier(bits, tmp_path):
    empty = jm.Pages(bits=bits, size=SIZE).empty(CONFIG, 24, 1, MOST, dtype=jnp.bfloat16)
    draw = np.random.default_rng(0)
    prompts = [draw.integers(0, 64, 40) for _ in range(3)]
    for i in range(3):
        prompts.append(np.append(prompts[i][:32], draw.integers(0, 64, 12)))
    prompts += [prompts[3], prompts[3], prompts[0]]
    blob = jm.nbytes(jax.eval_shape(jm.pages.take, empty, jnp.zeros(1, jnp.int32)))
    cache = jm.Prefixes(
        6, host=4 * blob, disk=10**6, path=tmp_path, size=SIZE, chunk=CHUNK, of=model().params
    )
    cold = lambda prompt: read(jm.Prefixes(6, size=SIZE, chunk=CHUNK), empty, prompt)
    pool = empty
    for prompt in prompts:
        logits, pool = read(cache, pool, prompt)
        np.testing.assert_array_equal(logits, cold(prompt)[0])
        assert jm.pages.usage(pool).allocated == len(cache._tiers.key_of)
    assert all(cache.stats().hits.values()), "a tier was not used"
