"""The Fisher estimate tells what noise will cost."""

import jax
import jax.numpy as jnp
import pytest

import jaxmem as jm


def net(params, x):
    def layer(x, w):
        return x + jnp.tanh(x @ w), None

    return jax.lax.scan(layer, x, params["layers"])[0] @ params["head"]


def made():
    a, b, c = jax.random.split(jax.random.key(0), 3)
    params = {
        "layers": 0.3 * jax.random.normal(a, (3, 16, 16)),
        "head": jax.random.normal(b, (16, 12)),
    }
    return params, jax.random.normal(c, (4000, 16))


@pytest.mark.parametrize("path", ["layers", "head"])
def test_it_predicts_the_divergence_of_small_noise(path):
    params, x = made()
    found = jm.fisher(net, params, [(part,) for part in x.reshape(20, 200, 16)])[path]
    before, ratio = jax.nn.log_softmax(net(params, x)), 1e-2
    size = lambda w: jnp.sqrt(jnp.square(w).sum((-2, -1), keepdims=True))

    def divergence(key):
        noise = jax.random.normal(key, params[path].shape)
        moved = params[path] + noise * ratio * size(params[path]) / size(noise)
        after = jax.nn.log_softmax(net(params | {path: moved}, x))
        return (jnp.exp(before) * (before - after)).sum(-1).mean()

    measured = jax.vmap(divergence)(jax.random.split(jax.random.key(2), 10)).mean()
    assert found.sum() * ratio**2 == pytest.approx(float(measured), rel=0.3)


def test_each_layer_of_a_stack_has_its_own():
    params, x = made()
    found = jm.fisher(net, params | {"steps": jnp.ones(2, jnp.int32)}, [(x,)])
    assert {path: s.shape for path, s in found.items()} == {"head": (), "layers": (3,)}


def test_no_batch_is_an_error():
    with pytest.raises(ValueError, match="at least one batch"):
        jm.fisher(net, made()[0], [])
