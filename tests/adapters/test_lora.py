"""Adapters beside dense and encoded weights, and in stacks of layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cheap_jit import jit

import jaxmem as jm
from jaxmem.adapters import adapters, attach

KEY = jax.random.key(0)


def normal(*shape):
    return jax.random.normal(KEY, shape)


@pytest.mark.parametrize("codec", [jm.Int(4), jm.Int(8), None], ids=str)
def test_adapters_train_and_the_frozen_weight_is_part_of_the_sum(codec):
    w = normal(32, 24)
    params = {"kernel": codec.encode(w) if codec else w}
    pairs = adapters(KEY, params, 4)
    run = jm.lift(lambda p, x: x @ p["kernel"])
    x, dense = normal(5, 32), jm.decode(params)["kernel"]
    np.testing.assert_allclose(run(attach(params, pairs), x), x @ dense, rtol=1e-4, atol=1e-4)
    gradients = jit(jax.grad(lambda p: (run(attach(params, p), x) ** 2).sum()))(pairs)["kernel"]
    y = x @ dense
    expected = 2 * y.T @ (x @ pairs["kernel"]["v"].T)
    np.testing.assert_allclose(gradients["u"], expected, rtol=1e-3, atol=1e-2)
    assert not gradients["v"].any()  # u is zero at first


def test_adapters_of_a_stack_have_its_axis_and_a_wrong_path_is_refused():
    params = {"layers": {"kernel": jnp.ones((3, 32, 24))}, "bias": jnp.ones(3)}
    pairs = adapters(KEY, params, 2)
    assert pairs["layers/kernel"]["v"].shape == (3, 2, 32)
    assert attach(params, pairs)["layers"]["kernel"].shape == (3, 32, 24)
    with pytest.raises(ValueError, match="adapters name 'head', which is no weight"):
        attach(params, {"head": pairs["layers/kernel"]})


def test_ranks_go_by_regex_and_a_rank_over_the_weights_is_refused():
    params = {"up": {"kernel": jnp.ones((32, 24))}, "down": {"kernel": jnp.ones((24, 32))}}
    ranks = {p: x["u"].shape[-1] for p, x in adapters(KEY, params, {"up.*": 4, ".*": 2}).items()}
    assert ranks == {"up/kernel": 4, "down/kernel": 2}
    assert list(adapters(KEY, params, {"up.*": 4})) == ["up/kernel"]
    with pytest.raises(ValueError, match="the rank of down/kernel is 25, expected at most 24"):
        adapters(KEY, params, 25)
    with pytest.raises(ValueError, match=r"u of up/kernel has the shape .* adapter of another"):
        attach(params, {"up/kernel": adapters(KEY, params, 2)["down/kernel"]})
