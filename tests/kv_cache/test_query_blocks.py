"""Attention by blocks of queries is attention, with fewer scores in memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmem as jm
from jaxmem.kv_cache.attention_masks import causal, causal_in_texts
from jaxmem.kv_cache.attention_scores import ScoreTerms, attend
from jaxmem.kv_cache.packed_texts import Packed
from jaxmem.kv_cache.query_blocks import queries_at_once, scores_within

B, H, K, T, C = 2, 4, 2, 48, 8
draw = lambda seed, *shape: jax.random.normal(jax.random.key(seed), shape, jnp.float32)
Q, KEYS, VALUES = draw(0, B, H, T, C), draw(1, B, K, T, C), draw(2, B, K, T, C)
SEGMENTS = jnp.repeat(jnp.array([[1, 2, 0], [1, 1, 2]]), T // 3, axis=1)
TEXTS = Packed(SEGMENTS, jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (B, T)))
CASES = {
    "causal": (causal(T, T, 0, T), ScoreTerms(), 0),
    "a window, a soft cap and sinks": (
        causal(T, T, 0, 5),
        ScoreTerms(softcap=2.0, sinks=draw(3, H)),
        0,
    ),
    "distances": (causal(T, T, 0, T), ScoreTerms(slopes=jnp.array([0.5, 0.25, 0.1, 0.05])), 0),
    "a bias, one mask for all queries": (
        jnp.arange(T)[None, None, None, None] < 40,
        ScoreTerms(bias=draw(4, 1, H, T, T)),
        0,
    ),
    "several texts": (causal_in_texts(TEXTS, T), ScoreTerms(), TEXTS),
}


@pytest.mark.parametrize("name", CASES)
def test_blocks_of_queries_give_attention_and_its_gradients(name):
    allowed, terms, position = CASES[name]

    def loss(most, q, k, v):
        with scores_within(most):
            y = attend(q, k, v, allowed, 0.3, terms, position)
        return (jnp.sin(y) * draw(5, *y.shape)).sum(), y

    def both(most):
        return jax.value_and_grad(lambda *x: loss(most, *x), (0, 1, 2), has_aux=True)(
            Q, KEYS, VALUES
        )

    whole, in_blocks = both(2**40), both(B * H * 16 * T * 4)
    for x, y in zip(jax.tree.leaves(whole), jax.tree.leaves(in_blocks)):
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-5)


def test_blocks_are_divisors_of_the_queries_and_end_with_the_block():
    with scores_within(2**20):
        assert queries_at_once(8, 1000, 1000) == 25 and queries_at_once(8, 997, 997) == 997
        assert queries_at_once(8, 100, 100) == 100
    assert queries_at_once(8, 1000, 1000) == 1000


def test_a_step_that_releases_gradients_holds_few_scores():
    from jaxmem.architectures import llama

    config = llama.Config(vocab=64, width=32, ffn=32, layers=2, heads=8, kv_heads=2, head_dim=8)
    model = jm.models.Model(config, llama.module(config), None, "tiny")
    recipe = jm.Recipe("tiny", "cpu", "train", 1, 2048, release=True)
    built = jm.build(recipe, model=model)
    text = str(jax.make_jaxpr(built.step)(*built.arguments))
    assert "f32[1,2,4,1024,2048]" in text and "f32[1,2,4,2048,2048]" not in text
