"""Weights that training holds in 3 bytes or 1: right on average, still where nothing moves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cheap_jit import jit
from jax.sharding import PartitionSpec as P

import jaxmem as jm
from jaxmem.optimizers import apply_rounded, in_int8, joined_weights, split_weights

W = jax.random.normal(jax.random.key(0), (2, 64, 72))
ENCODED = {
    "split": split_weights({"w": W})["w"],
    "int8": jm.Int(8).encode(W),
    "int8_groups": jm.Int(8, group=24).encode(W),
    "int8_table": jm.Int(8).encode(W, (-1,)),
}
every_form = pytest.mark.parametrize("form", ENCODED)


def value(leaf):
    """The weight in f32, with all the bytes that it has."""
    return jm.decode(joined_weights({"w": leaf}))["w"].astype(jnp.float32)


@every_form
def test_an_update_far_below_a_step_counts_on_average(form):
    leaf = {"w": ENCODED[form]}
    step = {"split": 2.0**-20, "int8": 1e-4}[form.split("_")[0]]
    update = {"w": jnp.full(W.shape, step)}
    again = lambda i, params: apply_rounded(params, update, i)
    moved = jit(lambda params: jax.lax.fori_loop(0, 64, again, params))(leaf)
    mean = float((value(moved["w"]) - value(leaf["w"])).mean()) / 64
    assert abs(mean - step) < 0.1 * step


@every_form
def test_a_weight_without_an_update_stays(form):
    leaf = {"w": ENCODED[form]}
    for i in range(2):  # the first one may choose other scales
        leaf, before = apply_rounded(leaf, {"w": jnp.zeros(W.shape)}, i), leaf
    assert jax.tree.structure(leaf) == jax.tree.structure(before)
    jax.tree.map(np.testing.assert_array_equal, leaf, before)


@every_form
def test_a_layer_of_a_stack_is_updated_as_a_weight(form):
    leaf = {"w": ENCODED[form].layer(1)}
    new = apply_rounded(leaf, {"w": jnp.full(W.shape[1:], 0.01)}, 1)
    assert new["w"].shape == W.shape[1:]
    assert abs(float((value(new["w"]) - value(leaf["w"])).mean()) - 0.01) < 1e-3


@every_form
def test_its_optimizer_has_the_state_of_the_decoded_weight_and_descends(form):
    optimizer, params = in_int8(optax.adam(0.05)), {"w": ENCODED[form]}
    loss = lambda p: (p["w"].astype("f4") ** 2).mean()

    def step(i, carry):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(jm.decode(params)), state, params)
        return apply_rounded(params, updates, i), state

    state = jax.jit(optimizer.init)(params)
    assert state["state"][0].mu["w"].codes.shape == W.shape
    new, _ = jit(lambda carry: jax.lax.fori_loop(0, 40, step, carry))((params, state))
    assert loss(jm.decode(new)) < 0.1 * loss(jm.decode(params))
    shapes = jax.eval_shape(jm.decode, params)
    places = jm.shardings(shapes, jm.mesh(fsdp=2), {"w": P(None, "fsdp")})
    where = jm.state_shardings(jax.eval_shape(optimizer.init, params), shapes, places)
    assert where["state"][0].mu["w"].codes.spec == P(None, "fsdp")


def test_a_split_weight_is_within_2_to_the_minus_16_and_reads_as_bfloat16():
    big = jnp.concatenate([W.reshape(-1), jnp.array([1e-38, -1e30, jnp.inf, 0.0, 1.0])])
    leaf = split_weights({"w": big})["w"]
    np.testing.assert_allclose(leaf.joined(), big, rtol=2.0**-16, atol=1e-37)
    np.testing.assert_array_equal(leaf.decode(), big.astype(jnp.bfloat16))
    assert jm.nbytes(ENCODED["split"]) == 3 * W.size


def test_an_unmodified_function_reads_the_bfloat16_half():
    x = jnp.ones((3, 64), jnp.bfloat16)
    y = jm.lift(lambda p, x: x @ p["w"], on_decode="error")({"w": ENCODED["split"].layer(0)}, x)
    np.testing.assert_array_equal(y, x @ W[0].astype(jnp.bfloat16))


@pytest.mark.parametrize("codec", [jm.Int(4), jm.Int(8, symmetric=False)])
def test_integers_that_are_not_trained_are_refused(codec):
    with pytest.raises(NotImplementedError, match="is not trained, expected Int"):
        apply_rounded({"w": codec.encode(W)}, {"w": W}, 1)
