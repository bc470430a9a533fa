"""Adam with its state in every dtype: the same minimum, and the bytes that are stated."""

import jax
import jax.numpy as jnp
import optax
import pytest
from cheap_jit import jit

import jaxmem as jm
from jaxmem.optimizers import apply_rounded, in_bfloat16, in_float32, in_int8


def normal(*shape):
    return jax.random.normal(jax.random.key(0), shape)


BYTES_PER_WEIGHT = [(in_float32, 8), (in_bfloat16, 4), (in_int8, 2 + 2 / 64)]  # Adam: two moments


@pytest.mark.parametrize(("wrap", "bytes_per_weight"), BYTES_PER_WEIGHT)
def test_adam_reaches_the_minimum_with_its_state_in_few_bits(wrap, bytes_per_weight):
    optimizer = wrap(optax.adam(0.02))
    target = normal(16, 256)
    params = {"w": jnp.zeros((16, 256), jnp.bfloat16)}
    state = optimizer.init(params)
    assert 0 <= jm.nbytes(state) - bytes_per_weight * target.size <= 8

    @jit
    def step(params, state, i):
        gradient = jax.grad(lambda p: ((p["w"].astype("f4") - target) ** 2).sum())(params)
        updates, state = optimizer.update(gradient, state, params)
        return apply_rounded(params, updates, i), state

    for i in range(300):
        params, state = step(params, state, i)
    assert jnp.abs(params["w"].astype("f4") - target).mean() < 0.02
