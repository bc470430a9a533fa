"""Integrated gradients are complete."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmem.evaluation import integrated_gradients


def test_a_linear_value_is_worth_its_weights_and_a_curved_one_is_complete():
    w = jax.random.normal(jax.random.key(0), (5, 4))
    x, base = jax.random.normal(jax.random.key(1), (2, 5, 4))
    linear = integrated_gradients(lambda x: (w * x).sum(), x, base, steps=1)
    np.testing.assert_allclose(linear, w * (x - base), rtol=1e-5)
    curved = lambda x: jnp.tanh(w * x).prod(0).sum()
    worth = integrated_gradients(curved, x, base, steps=32).sum()
    assert float(worth) == pytest.approx(float(curved(x) - curved(base)), abs=1e-5)
    with pytest.raises(ValueError, match=r"baseline is \(4,\), expected the shape"):
        integrated_gradients(curved, x, base[0])
    with pytest.raises(ValueError, match="steps is 0"):
        integrated_gradients(curved, x, base, steps=0)
