"""Private gradients against their formula, the accountant and audits of known leaks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cheap_jit import jit

import jaxmem as jm
from jaxmem.train import Privacy, audited_epsilon, private_gradient

# jax-privacy calls a name of optax that is deprecated
pytestmark = pytest.mark.filterwarnings("ignore:optax.global_norm is:DeprecationWarning")
SIZES = {"examples": 200, "batch": 20, "steps": 10}
ROWS = jax.random.normal(jax.random.key(0), (48, 8))
loss = lambda w, rows: jnp.square((rows * w[None]).sum(-1)).sum()


@pytest.fixture(scope="module", autouse=True)
def privacy_package():
    pytest.importorskip("jax_privacy")


@pytest.mark.parametrize("micro", [None, 8])
def test_the_gradient_is_the_mean_of_clipped_ones_with_noise(micro):
    privacy = Privacy(8.0, 1e-3, **SIZES, clip=0.5, micro=micro)
    assert privacy.capacity == (43 if micro is None else 48)
    rows, w = ROWS[: privacy.capacity], jnp.ones(8)
    padding = jnp.arange(len(rows)) >= 30
    slopes = np.asarray(2 * (rows @ w)[:, None] * rows, np.float64)[:30]
    norms = np.linalg.norm(slopes, axis=1, keepdims=True)
    want = (slopes * np.minimum(1, 0.5 / norms)).sum(0) / 20
    draw = lambda key: private_gradient(loss, privacy)(key, w, rows, padding)
    found = np.asarray(jit(jax.vmap(draw))(jax.random.split(jax.random.key(1), 2000)))
    deviation = privacy.noise * 0.5 / 20
    np.testing.assert_allclose(found.mean(0), want, atol=4 * deviation / 2000**0.5)
    np.testing.assert_allclose(found.std(0), deviation, rtol=0.1)


def test_the_noise_spends_epsilon_in_all_steps_and_less_before():
    privacy = Privacy(2.0, 1e-3, **SIZES)
    assert 1.9 < privacy.spent(10) <= 2.01 and 0 < privacy.spent(3) < privacy.spent(10)
    assert privacy.noise > Privacy(8.0, 1e-3, **SIZES).noise > 0


def test_examples_take_part_by_their_own_coins():
    privacy = Privacy(8.0, 1e-3, examples=50, batch=5, steps=2000)
    counts, sizes = np.zeros(50), []
    for indices, padding in privacy.batches(0):
        drawn = indices[~padding]
        assert len(set(drawn)) == len(drawn)
        counts[drawn] += 1
        sizes.append(len(drawn))
    assert np.abs(counts - 200).max() < 4 * 180**0.5 and abs(np.mean(sizes) - 5) < 0.2
    assert np.std(sizes) > 1.5


def test_an_audit_finds_what_leaks_and_nothing_in_what_does_not():
    losses = np.random.default_rng(0).normal(size=(2, 500))
    assert audited_epsilon(losses[0], losses[1], delta=1e-5) < 0.5
    assert audited_epsilon(losses[0] - 8, losses[1], delta=1e-5) > 3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Privacy(0.0, 1e-3, **SIZES), "epsilon is 0.0"),
        (lambda: Privacy(1.0, 0.1, **SIZES), "delta is 0.1, expected above 0"),
        (lambda: Privacy(1.0, 1e-3, examples=9, batch=10, steps=1), "a batch of 10 of 9"),
        (lambda: Privacy(1.0, 1e-3, **SIZES, micro=0), "micro is 0, expected 1 to 20"),
        (lambda: audited_epsilon([], [1.0], delta=1e-5), "losses of canaries are none"),
        (lambda: audited_epsilon([1.0], [1.0], delta=0.0), "delta is 0.0"),
    ],
)
def test_what_cannot_be_private_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


def test_encoded_weights_stay_frozen_under_private_adapters():
    params = {"kernel": jm.Int(8).encode(jnp.ones((8, 4)))}
    pairs = jm.adapters.adapters(jax.random.key(0), params, 2)
    apply = jm.lift(lambda params, x: x @ params["kernel"])
    loss = lambda pairs, x: jnp.square(apply(jm.adapters.attach(params, pairs), x)).sum()
    privacy = Privacy(8.0, 1e-3, **SIZES)
    rows, padding = ROWS[: privacy.capacity], jnp.zeros(privacy.capacity, bool)
    found = jit(private_gradient(loss, privacy))(jax.random.key(0), pairs, rows, padding)
    assert jax.tree.structure(found) == jax.tree.structure(pairs)
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(found))
