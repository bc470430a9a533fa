"""Optimizer state in int8: right on average, and never rounded to zero."""

import jax
import jax.numpy as jnp

from jaxmem.optimizers.int8_state import encode_int8


def normal(*shape):
    return jax.random.normal(jax.random.key(0), shape)


def test_int8_rounding_is_right_on_average_and_never_gives_zero():
    x = jnp.exp(-12 * jnp.linspace(0, 1, 4096)).reshape(16, 256) * jnp.sign(normal(16, 256))
    mean = jnp.stack([encode_int8(x, s).decode() for s in range(64)]).mean(0)
    error = jnp.abs(encode_int8(x, 0).decode() - x)
    assert jnp.abs(mean - x).mean() < 0.25 * error.mean()
    assert (jnp.sign(encode_int8(x, 0).codes.astype("f4")) == jnp.sign(x)).all()
    assert not jnp.any(encode_int8(jnp.zeros((16, 256)), 0).decode())
