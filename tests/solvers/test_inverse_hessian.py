"""The inverse factor against float64, and the sweep against the least squares it solves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmem.solvers.inverse_hessian import by_energy, inverse_factor, sweep


def gram_of(k, rows=200, seed=0):
    x = np.random.default_rng(seed).standard_normal((rows, k)) @ np.diag(np.linspace(0.1, 3, k))
    x += 2 * x[:, :1]  # one direction has much of the energy
    return x.T @ x / rows


def test_the_factor_is_the_one_of_the_inverse_matrix():
    gram = gram_of(40)
    u = np.asarray(inverse_factor(jnp.asarray(gram, "f4"), 0.01), np.float64)
    damped = gram + 0.01 * np.diag(gram).mean() * np.eye(40)
    np.testing.assert_array_equal(u, np.triu(u))
    np.testing.assert_allclose(u.T @ u @ damped, np.eye(40), atol=1e-4)


@pytest.mark.parametrize("damping", [0.0, 0.01])
@pytest.mark.parametrize("kind", ["singular", "one zero input", "all zero", "one input"])
def test_any_gram_matrix_has_a_finite_factor(kind, damping):
    gram = gram_of(20, rows=5) if kind == "singular" else gram_of(20)
    if kind == "one zero input":
        gram[3], gram[:, 3] = 0, 0
    gram = {"all zero": np.zeros((20, 20)), "one input": np.ones((1, 1))}.get(kind, gram)
    u = inverse_factor(jnp.asarray(gram, "f4"), damping)
    assert jnp.isfinite(u).all() and (jnp.diagonal(u) > 0).all()
    if kind == "one zero input":
        assert not u[3, 4:].any() and not u[:3, 3].any()


@pytest.mark.parametrize("block", [4, 7, 64])
def test_later_inputs_compensate_for_dropped_ones_as_least_squares_does(block):
    gram, w = gram_of(12), np.random.default_rng(1).standard_normal((12, 5))
    u = inverse_factor(jnp.asarray(gram, "f4"), 0.0)
    drop = lambda rows, i, j, count: (jnp.where(j < 6, 0.0, rows[i]), count + 1)
    run = jax.jit(lambda w, u: sweep(w, u, drop, jnp.int32(0), block=block))
    kept, count = run(jnp.asarray(w, "f4"), u)
    best = w[6:] + np.linalg.solve(gram[6:, 6:], gram[6:, :6] @ w[:6])
    assert not kept[:6].any() and count == -(-12 // min(block, 12)) * min(block, 12)
    np.testing.assert_allclose(kept[6:], best, rtol=2e-3, atol=2e-3)


def test_inputs_are_ordered_by_their_energy():
    gram = gram_of(9)
    assert by_energy(jnp.asarray(gram, "f4")).tolist() == np.argsort(-np.diag(gram)).tolist()
