"""Compiled attention of one token of each row over its pages is that of JAX."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmem as jm
from jaxmem.architectures import llama
from jaxmem.kv_cache.attention_scores import ScoreTerms
from jaxmem.kv_cache.cached_attention import attend_through
from jaxmem.kv_cache.paged_rows import position_in

pytestmark = pytest.mark.skipif(jm.native().instruction_set is None, reason=jm.native().reason)
IDS = jnp.zeros((3, 1), jnp.int32)


@functools.cache
def filled(width):
    """A pool of random keys and values; rows of 12, 0 and 33 tokens, which get one more or none."""
    sizes = dict(vocab=8, width=8, ffn=8, layers=3, heads=6, kv_heads=2, head_dim=width)
    pool = jm.Pages(size=8).empty(llama.Config(**sizes), pages=4, rows=3, most=5)
    pool = jm.pages.grow(pool, 5)  # two extents
    draw = np.random.default_rng(width).standard_normal
    stores = jax.tree.map(lambda x: jnp.asarray(draw(x.shape, np.float32)), pool.stores)
    pool, _ = jm.pages.alloc(dataclasses.replace(pool, stores=stores), jnp.array([12, 0, 33]))
    return jm.pages.alloc(dataclasses.replace(pool, length=pool.room), jnp.array([1, 0, 1]))[0]


@functools.partial(jax.jit, static_argnames="softcap")
def result(pool, q, k, v, window, softcap=0.0):
    where = position_in(pool, IDS, 0, None)
    terms = ScoreTerms(softcap=softcap)
    return attend_through(pool, jnp.int32(1), where, q, k, v, window, 0.2, terms)[1]


def new(width):
    draw = np.random.default_rng(0).standard_normal
    return [jnp.asarray(draw((3, n, 1, width), np.float32)) for n in (6, 2, 2)]


@pytest.mark.parametrize(("width", "window"), [(20, 2**31 - 1), (128, 2**31 - 1), (128, 7)])
def test_a_token_of_each_row_attends_to_its_pages_as_jax_has_it(width, window):
    asked = filled(width), *new(width), jnp.int32(window)
    got, want = result(*asked), result(*asked, softcap=1e8)  # which is not compiled
    np.testing.assert_allclose(got, want, 1e-5, 1e-5)
    assert not got[1].any() and got[0].any()


def test_the_library_computes_it_where_scores_are_plain():
    asked = filled(20), *new(20), jnp.int32(9)
    text = lambda **options: result.lower(*asked, **options).as_text()
    assert "jaxmem_attended_pages" in text()
    assert "jaxmem_attended_pages" not in text(softcap=3.0)
