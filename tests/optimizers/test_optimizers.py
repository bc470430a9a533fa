"""Laws of every optimizer and every form of its state: it descends, and takes the bytes stated."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cheap_jit import jit
from jax.sharding import PartitionSpec as P

import jaxmem as jm
from jaxmem.architectures import llama
from jaxmem.optimizers import (
    adam_mini,
    apollo,
    apply_rounded,
    in_bfloat16,
    in_float32,
    in_int4,
    in_int8,
    scale_sgd,
)

STEPS = 60
LAYERS, INPUTS, OUTPUTS = 2, 48, 100  # 100 is a multiple of no group
RATE = optax.cosine_decay_schedule(0.1, STEPS)
LAST_TWO = {  # axes of a matrix in a stack, for Muon
    "muon_weight_dimension_numbers": lambda params: jax.tree.map(
        lambda _: optax.contrib.MuonDimensionNumbers(1, 2), params
    ),
    "consistent_rms": 1.0,
}
OPTIMIZERS = {  # the optimizer, and the bytes a weight of its state
    "float32": (in_float32(optax.adam(RATE)), 8),
    "bfloat16": (in_bfloat16(optax.adam(RATE)), 4),
    "int8": (in_int8(optax.adam(RATE)), 2 + 2 * 2 * 2 / 100),
    "int8_cubic": (in_int8(optax.adam(RATE), code="cubic"), 2 + 2 * 4 / 100),
    "int4": (in_int4(optax.adam(RATE)), 1 + 2 * 2 / 100),
    "scale": (scale_sgd(RATE), 0),
    "scale_with_momentum": (scale_sgd(RATE, head=".*w"), 4),
    "adam_mini": (adam_mini(RATE), 4 + 4 / 48),
    "adam_mini_int8": (in_int8(adam_mini(RATE)), 1 + 2 * 2 / 100 + 4 / 48),
    "apollo": (apollo(RATE, rank=4), 8 * 4 / 48 + 4 / 4800),
    "apollo_mini": (apollo(RATE, rank=1, scaled="matrix", alpha=8), 8 / 48 + 4 / 4800),
    "lion_int8": (in_int8(optax.lion(RATE)), 1 + 2 * 2 / 100),
    "adafactor_int8": (
        in_int8(
            optax.adafactor(RATE, min_dim_size_to_factor=32, multiply_by_parameter_scale=False)
        ),
        148 * 4 / 4800,
    ),
    "muon_int4": (in_int4(optax.contrib.muon(RATE, **LAST_TWO)), 0.52),
}
pytestmark = pytest.mark.parametrize("name", OPTIMIZERS)


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


TARGET = {"layers": {"w": normal(0, LAYERS, INPUTS, OUTPUTS)}}
PARAMS = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.bfloat16), TARGET)


def error(params, target=TARGET):
    gap = jax.tree.map(lambda p, t: ((p.astype("f4") - t) ** 2).mean(), params, target)
    return sum(jax.tree.leaves(gap))


@functools.cache
def step_of(name):
    """A step of training in bfloat16, which donates what it updates."""
    optimizer = OPTIMIZERS[name][0]

    def step(params, state, i):
        gradient = jax.grad(error)(params)
        assert jax.tree.leaves(gradient)[0].dtype == jnp.bfloat16
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            updates, state = optimizer.update(gradient, state, params)
        return apply_rounded(params, updates, i), state

    return jit(step, donate_argnums=(0, 1))


def start(name):
    with jax.numpy_dtype_promotion("standard"):
        return jax.tree.map(jnp.copy, (PARAMS, jax.jit(OPTIMIZERS[name][0].init)(PARAMS)))


def test_it_descends_a_quadratic_and_goes_on_from_a_copy_as_if_it_had_not_stopped(name, tmp_path):
    params, state = start(name)
    for i in range(STEPS - 2):
        params, state = step_of(name)(params, state, i)
    jm.save(tmp_path / "state.jm", {"params": params, "state": state})
    saved = jm.load(tmp_path / "state.jm", classes=[optax.contrib.MuonState])
    loaded = saved["params"], saved["state"]
    for i in range(STEPS - 2, STEPS):
        params, state = step_of(name)(params, state, i)
        loaded = step_of(name)(*loaded, i)
    jax.tree.map(np.testing.assert_array_equal, (params, state), loaded)
    assert error(params) < 0.1 * error(PARAMS)


def test_its_state_has_the_bytes_that_are_stated(name):
    optimizer, per_weight = OPTIMIZERS[name]
    state = jax.eval_shape(optimizer.init, PARAMS)
    count = LAYERS * INPUTS * OUTPUTS
    assert 0 <= jm.nbytes(state) - per_weight * count <= 48  # counts of steps


def test_a_slice_of_the_state_of_a_stack_is_the_state_of_the_slice(name):
    if name in ("muon_int4", "adafactor_int8"):
        pytest.skip("optax tells a stack of matrices from a matrix by its number of axes")
    optimizer = OPTIMIZERS[name][0]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        state = jax.eval_shape(optimizer.init, PARAMS)
        state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state)
        layer = lambda tree, i: jax.tree.map(lambda x: x[i] if x.ndim else x, tree)
        update = jit(lambda g, s: optimizer.update(g, s, g))
        whole, after = update(TARGET, state)
        sliced, layer_after = update(layer(TARGET, 1), layer(state, 1))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, layer(whole, 1), sliced)
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert shapes(layer(after, 1)) == shapes(layer_after)


def test_its_state_is_divided_like_the_weights(name):
    state = jax.eval_shape(OPTIMIZERS[name][0].init, PARAMS)
    places = jm.shardings(PARAMS, jm.mesh(fsdp=2, tensor=2), {".*": P(None, "fsdp", "tensor")})
    where = jm.state_shardings(state, PARAMS, places)
    for x, place in zip(jax.tree.leaves(state), jax.tree.leaves(where)):
        if x.size >= INPUTS * OUTPUTS:
            assert place.spec != P(), (x.shape, place)


def test_its_state_of_a_model_of_135_m_has_few_bytes(name):
    sizes = dict(vocab=49152, width=576, ffn=1536, layers=30, heads=9, kv_heads=3, head_dim=64)
    if name != "int8":
        pytest.skip("one model")
    module = llama.module(llama.Config(**sizes, tied=True))
    params = jax.eval_shape(module.init, jax.random.key(0), jnp.ones((1, 2), jnp.int32))
    count = sum(x.size for x in jax.tree.leaves(params))
    assert jm.nbytes(jax.eval_shape(OPTIMIZERS[name][0].init, params)) <= 2.1 * count
