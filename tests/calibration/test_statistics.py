"""Moments equal those of the inputs captured by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmem as jm


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        h = nn.relu(nn.Dense(16, use_bias=False)(x))
        return x + nn.Dense(8, use_bias=False)(h), None


class Stack(nn.Module):
    @nn.compact
    def __call__(self, x):
        block = nn.scan(
            nn.remat(Block), variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )
        return block()(x)[0]


def normal(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def moments(x):
    x = np.asarray(x, np.float64).reshape(-1, x.shape[-1])
    return x.T @ x / len(x), x.mean(0), np.abs(x).max(0), len(x)


@pytest.mark.parametrize("kind", ["gram", "diag"])
def test_moments_are_those_of_the_inputs_through_scan_and_remat_in_micro_batches(kind):
    x = normal(4, 5, 8, seed=1)
    params = Stack().init(jax.random.key(0), x)
    found = jm.stats(Stack().apply, params, [(x[:2],), (x[2:],)], moments=kind)
    w1, w2 = jax.tree.leaves(params)
    h = x
    for i in range(3):
        a = jax.nn.relu(h @ w1[i])
        for got, rows in zip(found.values(), (h, a)):
            second, mean, absmax, count = moments(rows)
            second = second if kind == "gram" else np.diag(second)
            np.testing.assert_allclose(got.second[i], second, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(got.mean[i], mean, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(got.absmax[i], absmax, rtol=1e-5)
            assert got.count[i] == count
        h = h + a @ w2[i]


def test_a_weight_summed_over_two_axes_sees_them_as_one_vector():
    x, w = normal(5, 4, 3), normal(4, 3, 7, seed=1)
    found = jm.stats(lambda p, x: jnp.einsum("bhd,hdn->bn", x, p["out"]), {"out": w}, [(x,)])
    np.testing.assert_allclose(found["out"].second, moments(x.reshape(5, 12))[0], rtol=1e-4)


def test_layers_along_another_axis_have_uses_and_the_mean_of_their_moments():
    layers = lambda p, x: jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["w"])[0]
    moved = lambda p, x: layers({"w": jnp.moveaxis(p["w"], 1, 0)}, x)
    w, x = jax.random.normal(jax.random.key(0), (3, 8, 8)), jnp.ones((2, 8))
    params = {"w": jnp.moveaxis(w, 0, 1)}
    assert [use.axes for use in jm.uses(moved, params, x)["w"]] == [(-3,)]
    got, want = jm.stats(moved, params, [(x,)])["w"], jm.stats(layers, {"w": w}, [(x,)])["w"]
    np.testing.assert_allclose(got.second, want.second.mean(0), rtol=1e-5, atol=1e-6)


def test_a_tied_table_is_measured_where_it_multiplies():
    table = normal(11, 6)
    fn = lambda p, ids: p["table"][ids] @ p["table"].T
    ids = jnp.arange(8) % 11
    found = jm.stats(fn, {"table": table}, [(ids,)])
    np.testing.assert_allclose(found["table"].second, moments(table[ids])[0], rtol=1e-4, atol=1e-5)


def test_batched_weights_are_measured_apart():
    x, w = normal(3, 5, 4), normal(3, 4, 7, seed=1)
    found = jm.stats(lambda p, x: x @ p["w"], {"w": w}, [(x,)])
    for i in range(3):
        np.testing.assert_allclose(found["w"].second[i], moments(x[i])[0], rtol=1e-4, atol=1e-5)


def test_a_sum_over_nothing_has_moments_too():
    found = jm.stats(lambda p, x: x @ p["w"], {"w": jnp.zeros((0, 4))}, [(jnp.zeros((3, 0)),)])
    assert found["w"].second.shape == (0, 0) and found["w"].count == 0


def test_no_batch_and_what_is_none_are_told():
    with pytest.raises(ValueError, match="at least one batch"):
        jm.stats(lambda p: p["w"], {"w": normal(2, 2)}, [])
    with pytest.raises(TypeError, match="batches that are tuples"):
        jm.stats(lambda p, x: x @ p["w"], {"w": normal(2, 2)}, normal(1, 3, 2))


def test_a_weight_that_is_fed_no_number_is_named():
    params = {"w": jnp.ones((3, 2)), "v": jnp.ones((3, 2))}
    fn = lambda p, x: (jnp.ones((1, 3)) @ p["v"], x @ p["w"])
    with pytest.raises(ValueError, match=r"^w: it is fed NaN"):
        jm.stats(fn, params, [(jnp.ones((1, 3)),), (jnp.full((1, 3), jnp.nan),)])


def test_no_cotangent_is_computed_but_those_of_the_moments():
    fn = lambda p, x: jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["w"])[0]
    run = lambda p, x: jm.stats(fn, p, [(x,)])["w"].second
    text = str(jax.make_jaxpr(run)({"w": jnp.ones((3, 8, 8))}, jnp.ones((4, 8))))
    assert text.count("dot_general[") == 2  # the model's, and xᵀx
