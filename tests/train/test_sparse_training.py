"""Pruning while training: to the target, exactly, and the same from a checkpoint on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cheap_jit import jit

import jaxmem as jm

STEPS = 40
CODEC = jm.Bitmask(0.25)
WRAPPED = {
    "rigl": lambda plan: jm.rigl(optax.adam(1e-2), plan, every=5, end=30),
    "evolve": lambda plan: jm.evolve(optax.adam(1e-2), plan, every=5, end=30),
    "straight_through": lambda plan: jm.straight_through(optax.adam(1e-2), plan),
    "movement": lambda plan: jm.movement(optax.adam(1e-2), plan, begin=5, end=30),
    "rewind": lambda plan: jm.rewind(optax.adam(1e-2), plan, rounds=3, steps=10, to=2),
    "gradual": lambda plan: optax.chain(
        optax.adam(1e-2), jm.gradual(plan, begin=5, end=30, every=5)
    ),
}
each = pytest.mark.parametrize("name", WRAPPED)


DRAW = np.random.default_rng(0)
X = DRAW.standard_normal((128, 32), np.float32)
Y = np.tanh(X @ (DRAW.standard_normal((32, 8)) * (DRAW.random((32, 8)) < 0.25)).astype("f4"))


@functools.cache
def start():
    draw = lambda i: jax.random.normal(jax.random.key(i), (32, 32)) / 6
    out = jax.random.normal(jax.random.key(9), (32, 8)) / 6
    return {"layers": jnp.stack([draw(2), draw(3)]), "out": out, "bias": jnp.zeros(8)}


def model_loss(params):
    x = X
    for w in params["layers"]:
        x = jnp.tanh(x @ w) + x
    return ((x @ params["out"] + params["bias"][None] - Y) ** 2).mean()


PLAN = {"layers": CODEC, "out": jm.NM(2, 4)}


def runner(tx):
    """(params, state, steps) -> (params, state), compiled once."""

    def step(_, carry):
        params, state = carry
        updates, state = tx.update(jax.grad(model_loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    run = jit(lambda params, state, steps: jax.lax.fori_loop(0, steps, step, (params, state)))

    def go(params, state, steps):
        with jax.numpy_dtype_promotion("standard"):  # optax counts its steps in int32
            return run(params, state, steps)

    return go


@functools.cache
def wrapped(name):
    tx = WRAPPED[name](PLAN)
    return tx.init(start()), runner(tx)


@each
def test_it_trains_to_the_target_and_encodes_exactly(name):
    state, run = wrapped(name)
    params, _ = run(start(), state, STEPS)
    kept = np.asarray(params["layers"] != 0)
    assert (kept.sum(-2) <= 8).all() and kept.sum() > 0.9 * 2 * 32 * 8  # a grown weight may be zero
    assert ((params["out"].reshape(8, 4, 8) != 0).sum(1) <= 2).all()
    leaves = jm.encode(params, PLAN)
    jax.tree.map(np.testing.assert_array_equal, jm.decode(leaves), params)
    at_once = jm.decode(jm.encode(start(), PLAN))
    assert model_loss(params) < 0.5 * model_loss(at_once)


@each
def test_a_checkpoint_in_the_middle_gives_the_same_masks(name, tmp_path):
    state, run = wrapped(name)
    whole, half = run(start(), state, 24), run(start(), state, 12)
    leaves, structure = jax.tree.flatten(half)
    jm.save(tmp_path / "half.jm", leaves)
    again = run(*structure.unflatten(jm.load(tmp_path / "half.jm")), 12)
    jax.tree.map(np.testing.assert_array_equal, again, whole)


def test_dropped_weights_stay_dropped_and_their_number_follows_the_schedule():
    tx = optax.chain(optax.sgd(0.1), jm.gradual({"layers": CODEC}, begin=2, end=10, every=2))
    params, state, run = start(), tx.init(start()), runner(tx)
    dropped = jnp.zeros(params["layers"].shape, bool)
    for step in range(12):
        params, state = run(params, state, 1)
        t = min(max(step - step % 2 - 2, 0) / 8, 1)
        kept = 1 - 0.75 * (1 - (1 - t) ** 3)
        assert ((params["layers"] != 0).sum(-2) == round(32 * kept)).all()
        assert (params["layers"][dropped] == 0).all()
        dropped = params["layers"] == 0


def test_a_bfloat16_weight_stays_bfloat16():
    params = {"w": jax.random.normal(jax.random.key(0), (8, 4), jnp.bfloat16)}
    gradient = {"w": jnp.ones((8, 4), jnp.bfloat16)}
    for make in (
        lambda plan: optax.chain(optax.sgd(0.1), jm.gradual(plan, begin=0, end=1)),
        lambda plan: jm.straight_through(optax.sgd(0.1), plan),
        lambda plan: jm.rigl(optax.sgd(0.1), plan, every=1, end=9),
    ):
        tx = make({"w": jm.NM(2, 4)})
        updates, _ = tx.update(gradient, tx.init(params), params)
        assert optax.apply_updates(params, updates)["w"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: jm.gradual({"w": jm.Int(4)}, begin=0, end=9), TypeError, "w: .*sparse codecs"),
        (lambda: jm.gradual({}, begin=9, end=9), ValueError, "0 <= begin < end"),
        (lambda: jm.rigl(optax.sgd(1.0), {}, share=1.5), ValueError, "between 0 and 1, got 1.5"),
        (lambda: jm.evolve(optax.sgd(1.0), {}, every=0), ValueError, "every=0"),
        (lambda: jm.movement(optax.sgd(1.0), {}, begin=3, end=2), ValueError, "begin=3, end=2"),
        (lambda: jm.rewind(optax.sgd(1.0), {}, rounds=0, steps=1), ValueError, "rounds, steps"),
        (
            lambda: jm.gradual({"v": CODEC}, begin=0, end=1).init({"w": jnp.ones((4, 4))}),
            ValueError,
            "'v'; there are",
        ),
        (
            lambda: jm.gradual({}, begin=0, end=1).update({}, None),
            ValueError,
            "wants the params",
        ),
    ],
)
def test_a_wrong_codec_or_schedule_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
