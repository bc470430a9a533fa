"""Compiled attention of one token over a cache is that of JAX."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmem as jm
from jaxmem.kv_cache.attention_scores import ScoreTerms
from jaxmem.kv_cache.cached_attention import attend_through

pytestmark = pytest.mark.skipif(jm.native().instruction_set is None, reason=jm.native().reason)


def random(*shape):
    return jnp.asarray(np.random.default_rng(len(shape)).standard_normal(shape, np.float32))


CACHE = {"k": random(3, 2, 2, 24, 20), "v": random(3, 2, 2, 24, 20)}
NEW = random(2, 6, 1, 20), random(2, 2, 1, 20), random(2, 2, 1, 20)
attend = functools.partial(attend_through, scale=0.2)


def result(position, window, terms, cache=CACHE):
    place = jnp.int32(1), jnp.int32(position)
    run = jax.jit(functools.partial(attend, terms=terms))
    return run(cache, *place, *NEW, jnp.int32(window))[1]


@pytest.mark.parametrize("position, window", [(0, 2**31 - 1), (23, 2**31 - 1), (17, 5), (3, 1)])
def test_a_row_of_attention_is_that_of_jax(position, window):
    other_way = result(position, window, ScoreTerms(bias=jnp.zeros((1, 6, 1, 24))))
    np.testing.assert_allclose(result(position, window, ScoreTerms()), other_way, 1e-5, 1e-5)


def test_the_library_computes_it():
    text = lambda q: (
        jax.jit(attend)
        .lower(CACHE, jnp.int32(0), jnp.int32(4), q, *NEW[1:], jnp.int32(9))
        .as_text()
    )
    assert "jaxmem_attended_row" in text(NEW[0])
    assert "jaxmem_attended_row" not in text(NEW[0].astype(jnp.bfloat16))


def test_it_has_the_derivatives_of_attention_and_maps():
    run = lambda q: attend(CACHE, jnp.int32(0), jnp.int32(4), q, *NEW[1:], jnp.int32(9))[1]
    np.testing.assert_allclose(
        jax.vmap(run)(jnp.stack([NEW[0], NEW[0] * 2]))[1], run(NEW[0] * 2), 1e-5, 1e-5
    )
    moved = (run(NEW[0] + 1e-2) - run(NEW[0] - 1e-2)) / 2e-2
    tangent = jax.jvp(run, (NEW[0],), (jnp.ones_like(NEW[0]),))[1]
    np.testing.assert_allclose(tangent, moved, 1e-2, 1e-3)
