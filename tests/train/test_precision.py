"""Half precision with a scaled loss: steps that overflow change nothing, the others train."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cheap_jit import jit

import jaxmem as jm
from jaxmem.train import Precision, accumulate, in_precision, scale_of, scaled

HALF = Precision(params=jnp.float32, compute=jnp.float16, output=jnp.float32)
X = jax.random.normal(jax.random.key(0), (16, 8))
PARAMS = {"a": jnp.eye(8), "b": jnp.ones((8, 1)) / 8}


def loss(params, x):
    assert params["a"].dtype == x.dtype  # what `in_precision` promises
    y = jnp.tanh(x @ params["a"]) @ params["b"]
    return jnp.square(y - x[:, :1]).mean().astype(jnp.float32)


def steps(optimizer, count, start=None):
    of_params = in_precision(loss, HALF)
    state = start or (PARAMS, optimizer.init(PARAMS))

    @jit
    def step(params, state):
        slope_of = accumulate(lambda p, x: of_params(p, x) * scale_of(state), 2)
        value, slope = slope_of(params, X)
        updates, new = optimizer.update(slope, state, params)
        return optax.apply_updates(params, updates), new, value / scale_of(state)

    for _ in range(count):
        *state, value = step(*state)
        yield *state, float(value)


@pytest.fixture(autouse=True)
def numbers_promote_as_users_have_it():
    with jax.numpy_dtype_promotion("standard"):
        yield


def test_half_precision_trains_through_forced_overflows():
    optimizer = scaled(optax.adam(3e-2), start=2.0**24, every=20)
    trail = list(steps(optimizer, 60))
    skipped = [int(state.skipped) for _, state, _ in trail]
    assert 2 <= skipped[-1] < 20 and skipped[0] == 1
    assert int(trail[-1][1].inner[0].count) == 60 - skipped[-1]
    assert trail[-1][2] < 0.2 * trail[0][2]
    scales = [float(scale_of(state)) for _, state, _ in trail]
    assert max(b / a for a, b in itertools.pairwise(scales)) == 2.0  # it grows again


def test_a_skipped_step_changes_neither_params_nor_state():
    optimizer = scaled(optax.adam(3e-2), start=2.0**24)
    [(params, state, _)] = steps(optimizer, 1)
    same = np.testing.assert_array_equal
    jax.tree.map(same, (params, state.inner), (PARAMS, optimizer.init(PARAMS).inner))
    assert int(state.skipped) == 1 and float(state.scale) == 2.0**23


def test_finite_steps_are_those_of_the_optimizer_alone():
    optimizer = scaled(optax.adam(3e-2), start=64.0)
    *_, (params, *_) = steps(optimizer, 3)
    plain, want, state = optax.adam(3e-2), PARAMS, optax.adam(3e-2).init(PARAMS)
    slope_of = jit(jax.grad(in_precision(loss, HALF)))
    for _ in range(3):
        updates, state = plain.update(slope_of(want, X), state)
        want = optax.apply_updates(want, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), params, want)


def test_small_gradients_in_float16_are_not_lost():
    optimizer = scaled(jm.optimizers.in_float32(optax.sgd(1.0)), start=2.0**15)
    w = jnp.ones(4, jnp.float16)
    state = optimizer.init(w)
    tiny = jnp.full(4, 1e-9 * 2.0**15, jnp.float16)  # of a loss times the scale
    updates, _ = optimizer.update(tiny, state, w)
    np.testing.assert_allclose(updates, -1e-9, rtol=1e-2)


def test_encoded_weights_keep_their_bytes():
    enc = {"w": jm.Int(8).encode(jnp.eye(8))}
    cast = HALF.cast_to_compute(enc)
    assert cast["w"].dtype == jnp.float16 and jm.nbytes(cast) == jm.nbytes(enc)
    run = in_precision(jm.lift(lambda p, x: x @ p["w"]), HALF)
    assert run(enc, X).dtype == jnp.float32
    as_it_was = Precision(None, None, None).cast_to_compute(PARAMS)
    assert as_it_was["a"] is PARAMS["a"]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: scaled(optax.sgd(1.0), start=0.5), ValueError, "start is 0.5 and least is 1.0"),
        (lambda: scaled(optax.sgd(1.0), every=0), ValueError, "every is 0, expected at least 1"),
        (lambda: scale_of(optax.sgd(1.0).init(X)), ValueError, "holds 0 states of jm.train.scaled"),
        (lambda: Precision(compute=jnp.int8), TypeError, "compute"),
    ],
)
def test_wrong_options_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
