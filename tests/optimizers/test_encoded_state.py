"""State in 8 and 4 bits: right on average, and never rounded to zero."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cheap_jit import jit

import jaxmem as jm
from jaxmem.optimizers import in_int8
from jaxmem.optimizers.companded_codes import encode_companded
from jaxmem.optimizers.int4_state import encode_int4
from jaxmem.optimizers.int8_state import encode_int8

ENCODE = {"companded": encode_companded, "cubic": encode_int8, "int4": encode_int4}
# a first moment, a second one, and one with a column of zeros
DECAY = jnp.exp(-9 * jnp.linspace(0, 1, 16 * 250)).reshape(16, 250)
SIGNS = jnp.sign(jax.random.normal(jax.random.key(0), (16, 250)))
STATES = {"signed": DECAY * SIGNS, "positive": DECAY, "sparse": DECAY.at[:, 7].set(0)}


@functools.cache
def decoded_64(code):
    """What x is after encoding by each of 64 seeds."""
    one = lambda x, seed: ENCODE[code](x, seed).decode()
    return jit(lambda x: jax.vmap(one, (None, 0))(x, jnp.arange(64)))


every_code = pytest.mark.parametrize("code", ENCODE)


@every_code
@pytest.mark.parametrize("kind", STATES)
def test_rounding_is_right_on_average_and_gives_zero_for_zero_only(code, kind):
    x = STATES[kind]
    decoded = np.asarray(decoded_64(code)(x))
    error = np.abs(decoded[0] - x)
    assert np.abs(decoded.mean(0) - x).mean() < (0.25 if code != "int4" else 0.6) * error.mean()
    assert (np.sign(decoded) == np.sign(x)).all()


@every_code
def test_zeros_and_nan_stay(code):
    special = jnp.zeros((2, 64)).at[1, 3].set(jnp.nan)
    decoded = jit(lambda x: ENCODE[code](x, 0).decode())(special)
    np.testing.assert_array_equal(decoded[0], special[0])
    assert jnp.isnan(decoded[1]).any()


def test_rows_of_few_numbers_take_few_bytes():
    state = jax.eval_shape(lambda x: encode_int4(x, 0), jnp.ones((512, 8)))
    assert jm.nbytes(state) == 512 * (8 // 2 + 2)  # codes, and a scale in bfloat16


def test_a_code_that_is_none_is_refused():
    with pytest.raises(ValueError, match="in_int8: code is 'dynamic', expected one of"):
        in_int8(optax.sgd(1e-3), code="dynamic")
