"""Stochastic rounding to bfloat16: right on average, and exact where bfloat16 is."""

import jax.numpy as jnp
import numpy as np

from jaxmem.optimizers import stochastic_round


def test_rounding_is_right_on_average_and_changes_no_bfloat16():
    x = jnp.linspace(-3, 3, 50_001)
    mean = jnp.stack([stochastic_round(x, s).astype("f4") for s in range(64)]).mean(0)
    assert jnp.abs(mean - x).mean() < 0.25 * jnp.abs(x.astype(jnp.bfloat16).astype("f4") - x).mean()
    exact = x.astype(jnp.bfloat16)
    np.testing.assert_array_equal(stochastic_round(exact.astype("f4"), 5), exact)
    assert jnp.isinf(stochastic_round(jnp.array([jnp.inf]), 1)).all()
