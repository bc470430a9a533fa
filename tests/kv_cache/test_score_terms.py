"""Soft caps, ALiBi and sinks equal their formulas, through dense and quantized caches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cheap_jit import jit

from jaxmem.architectures.llama import Config
from jaxmem.kv_cache.attention_scores import ScoreTerms
from jaxmem.kv_cache.cached_attention import attend_through
from jaxmem.models import KVCache

CONFIG = Config(vocab=8, width=8, ffn=8, layers=1, heads=4, kv_heads=2, head_dim=8)
TOKENS, SCALE = 5, 2.0
SLOPES, SINKS = np.array([0.5, 0.25, 0.1, 2.0], "f4"), np.array([1.0, -1.0, 3.0, 0.0], "f4")
TERMS = {
    "sinks": dict(sinks=SINKS),
    "all": dict(softcap=1.5, slopes=SLOPES, sinks=SINKS),
}


def states():
    draw = lambda heads, seed: jax.random.normal(jax.random.key(seed), (1, heads, TOKENS, 8))
    return draw(4, 0), draw(2, 1), draw(2, 2)


def formula(q, k, v, softcap=0.0, slopes=(0, 0, 0, 0), sinks=(-np.inf,) * 4):
    """Attention of each query and head by itself."""
    out = np.zeros(q.shape)
    for head in range(q.shape[1]):
        for t in range(TOKENS):
            scores = SCALE * k[0, head // 2, : t + 1] @ q[0, head, t]
            scores = softcap * np.tanh(scores / softcap) if softcap else scores
            scores = scores - slopes[head] * (t - np.arange(t + 1))
            total = np.exp(scores).sum() + np.exp(sinks[head])
            out[0, head, t] = np.exp(scores) / total @ v[0, head // 2, : t + 1]
    return out


def token_by_token(cache, terms):
    @jit
    def run(cache, q, k, v):
        def step(cache, t):
            at = lambda x: jax.lax.dynamic_slice_in_dim(x, t, 1, 2)
            return attend_through(cache, 0, t, at(q), at(k), at(v), 99, SCALE, terms)

        return jax.lax.scan(step, cache, jnp.arange(TOKENS, dtype=jnp.int32))[1]

    return jnp.concatenate(list(run(cache, *states())), axis=2)


@pytest.mark.parametrize("name", TERMS)
def test_the_terms_equal_their_formula_at_once_and_through_each_cache(name):
    want, terms = formula(*map(np.asarray, states()), **TERMS[name]), ScoreTerms(**TERMS[name])
    at_once = attend_through(None, 0, 0, *states(), 99, SCALE, terms)[1]
    np.testing.assert_allclose(at_once, want, atol=1e-5)
    np.testing.assert_allclose(token_by_token(CONFIG.cache(1, 8), terms), want, atol=1e-5)
    quantized = KVCache(8).empty(CONFIG, 1, 64, jnp.float32)  # its last block is not rounded
    np.testing.assert_allclose(token_by_token(quantized, terms), want, atol=1e-5)
