"""LowRank: the nearest matrix of its rank to the weight, or to the outputs of the weight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cheap_jit import jit

import jaxmem as jm

draw = lambda *shape: jax.random.normal(jax.random.key(sum(shape)), shape)
X = draw(300, 24) @ (draw(24, 24) * jnp.exp(draw(24))[None])
W = draw(2, 24, 20)
FED = jm.stats(lambda p, x: jnp.einsum("bk,lkn->lbn", x, p["w"]), {"w": W}, [(X,)])["w"]


LOW_RANK = jit(lambda w: jm.LowRank(8).encode(w).decode())


def loss(wrong):
    return float(jnp.square(jnp.einsum("bk,lkn->lbn", X, wrong)).sum())


def test_its_outputs_are_the_nearest_of_the_rank():
    got = jit(lambda w, fed: jm.LowRank(6).encode(w, (-2,), fed).decode())(W, FED)
    values = [np.linalg.svd(np.asarray(X @ w, "f8"))[1][6:] for w in W]
    np.testing.assert_allclose(loss(got - W), sum((v**2).sum() for v in values), rtol=1e-3)
    assert loss(got - W) < 0.5 * loss(jm.LowRank(6).encode(W).decode() - W)


@pytest.mark.parametrize("spectrum", ["halves", "equal, then zeros"])
@pytest.mark.parametrize("n, k", [(30, 20), (20, 30)])
def test_it_is_nearest_also_where_the_square_of_the_matrix_loses_numbers(spectrum, n, k):
    u, v = (np.linalg.qr(np.asarray(draw(size, 20), "f8"))[0] for size in (n, k))
    values = 0.5 ** np.arange(20) if spectrum == "halves" else (np.arange(20) < 6) * 1.0
    w = (u * values) @ v.T
    got = LOW_RANK(jnp.asarray(w.T, jnp.float32))
    error = np.linalg.norm(np.asarray(got, "f8").T - w)
    np.testing.assert_allclose(error, np.linalg.norm(values[8:]), atol=2e-6)


def test_a_diagonal_is_better_than_nothing():
    diagonal = jm.Moments(FED.diag, FED.mean, FED.absmax, FED.count)
    got = jm.LowRank(6).encode(W, stats=diagonal).decode()
    assert loss(got - W) < loss(jm.LowRank(6).encode(W).decode() - W)


def test_in_a_sum_with_stats_it_takes_the_error_that_outputs_see():
    plain = jm.Int(3).encode(W).decode()
    both = jm.Sum((jm.Int(3), jm.LowRank(4)))
    assert loss(both.encode(W, stats=FED).decode() - W) < 0.7 * loss(both.encode(W).decode() - W)
    assert loss(both.encode(W).decode() - W) < loss(plain - W)
