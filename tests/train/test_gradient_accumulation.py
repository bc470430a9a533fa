"""Accumulated gradients against those of the whole batch."""

import chex
import jax
import jax.numpy as jnp
import pytest
from cheap_jit import jit

from jaxmem.train import accumulate


def normal(*shape):
    return jax.random.normal(jax.random.key(0), shape)


def test_accumulated_gradients_are_those_of_the_whole_batch():
    w, x = normal(16, 4), normal(8, 16)
    loss = lambda w, x: (jnp.tanh(x @ w) ** 2).mean()
    got, want = (jit(accumulate(loss, n))(w, x) for n in (4, 1))
    chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-7, strict=True)
    with pytest.raises(ValueError, match="3 micro-batches of"):
        accumulate(loss, 3)(w, x)
