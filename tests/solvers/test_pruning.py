"""Solvers that prune: less error than the step before, exactly as many weights, the same leaves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cheap_jit import jit

import jaxmem as jm
from jaxmem.solvers import pruning_scores
from jaxmem.solvers.inverse_hessian import inverse_factor
from jaxmem.solvers.refit import support

K, N = 160, 24  # inputs (more than a block of the sweep has) and outputs
draw = lambda *shape: jax.random.normal(jax.random.key(sum(shape)), shape)
PATTERNS = [
    jm.Bitmask(0.5),
    jm.NM(2, 4),
    jm.Csr(0.2),
    jm.Blocks(0.5, block=(8, 8)),
    jm.Coo(0.3),
    jm.Inputs(0.75, size=8),
]


@functools.cache
def problem():
    """A weight (K, N), correlated inputs (rows, K), and their moments."""
    x = draw(400, K) @ draw(K, K) * jnp.exp(draw(K))[None]
    w = draw(K, N)
    return w, x, jm.stats(lambda p, x: x @ p["w"], {"w": w}, [(x,)])["w"]


@functools.cache
def encoded(codec):
    w, _, moments = problem()
    return jit(lambda w, moments: codec.encode(w, (-2,), moments))(w, moments)


@functools.cache
def decoded(codec):
    return np.asarray(jm.decode(encoded(codec)))


@functools.cache
def loss(codec):
    w, x = map(np.asarray, problem()[:2])
    error = x @ (decoded(codec) - w)
    return float((error * error).sum() / ((x @ w) ** 2).sum())


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_each_step_has_less_error_than_the_one_before(pattern):
    steps = [pattern, jm.SparseGPT(pattern), jm.Refit(jm.SparseGPT(pattern), steps=100)]
    losses = [loss(codec) for codec in steps]
    assert losses == sorted(losses, reverse=True)
    assert losses[1] < 0.75 * losses[0]
    kept = [int(support(encoded(codec)).sum()) for codec in steps]
    assert kept[0] == kept[1] == kept[2] == (decoded(steps[1]) != 0).sum()


def test_a_sweep_equals_the_published_algorithm_in_float64():
    w, _, moments = problem()
    got = decoded(jm.SparseGPT(jm.NM(2, 4)))
    want = plain_sparsegpt(np.asarray(w.T, "f8"), np.asarray(moments.second, "f8"), 2, 4).T
    np.testing.assert_allclose(got, want, rtol=2e-3, atol=2e-3)


def plain_sparsegpt(w, gram, n, m, damping=0.01):
    """Frantar and Alistarh's algorithm for n:m, weights (outputs, inputs), as they print it."""
    k = len(gram)
    inverse = np.linalg.inv(gram + damping * gram.trace() / k * np.eye(k))
    factor = np.linalg.cholesky(inverse).T
    w = w.copy()
    for j in range(k):
        if j % m == 0:
            score = w[:, j : j + m] ** 2 / np.diag(factor)[j : j + m] ** 2
            drop = np.argsort(score, 1)[:, : m - n] + j
        out = (drop == j).any(1)
        error = np.where(out, w[:, j], 0) / factor[j, j]
        w[:, j:] -= error[:, None] * factor[j, j:]
        w[out, j] = 0
    return w


def test_a_fit_is_the_least_squares_solution_on_its_support():
    w, _, moments = problem()
    leaf = encoded(jm.Refit(jm.Wanda(jm.Bitmask(0.25)), steps=400, damping=0.1))
    mask, got = np.asarray(support(leaf)), np.asarray(leaf.decode()).T
    gram = np.asarray(moments.second, "f8")
    gram = gram + 0.1 * gram.trace() / K * np.eye(K)
    for row, kept, target in zip(got, mask, np.asarray(w.T, "f8")):
        want = np.linalg.solve(gram[np.ix_(kept, kept)], gram[kept] @ target)
        np.testing.assert_allclose(row[kept], want, rtol=1e-3, atol=1e-3)


def test_pruning_and_rounding_together_is_better_than_one_after_the_other():
    for pattern in (jm.Bitmask(0.5), jm.NM(2, 4)):
        codec = jm.Chain((pattern, jm.Int(4, group=20)))
        separately = jm.Chain((jm.SparseGPT(pattern), jm.Int(4, group=20)))
        together = jm.SparseGPT(codec)
        assert jm.nbytes(encoded(together)) == jm.nbytes(encoded(codec))
        assert loss(together) < 0.9 * loss(separately) < loss(codec)


def test_a_permutation_of_inputs_keeps_more_and_its_bytes_are_counted():
    for solver in (jm.Wanda, lambda codec: jm.SparseGPT(jm.Chain((codec, jm.Int(4, group=20))))):
        plain = solver(jm.NM(2, 4))
        permuted = encoded(jm.Permute(plain))
        np.testing.assert_array_equal(jnp.sort(permuted.order), jnp.arange(K))
        assert jm.nbytes(permuted) == jm.nbytes(encoded(plain)) + K  # K is below 256
        assert loss(jm.Permute(plain)) < loss(jm.Permute(plain, 0)) < loss(plain)


def test_pruners_keep_the_highest_scores_of_their_formulas():
    w, _, moments = problem()
    chosen = lambda codec: support(encoded(codec))
    by = lambda score: jm.Bitmask(0.5).mask(score)
    energy = jnp.sqrt(moments.diag)
    np.testing.assert_array_equal(
        chosen(jm.Wanda(jm.Bitmask(0.5))), by(jnp.abs(w.T) * energy[None])
    )
    size = jnp.abs(w.T)
    relative = size / size.sum(0, keepdims=True) + size / size.sum(1, keepdims=True)
    want = by(relative * jnp.sqrt(energy)[None])
    np.testing.assert_array_equal(chosen(jm.RIA(jm.Bitmask(0.5))), want)
    first, again, other = (
        chosen(jm.Prune(jm.Bitmask(0.5), pruning_scores.random(i))) for i in (0, 0, 1)
    )
    assert (first == again).all() and not (first == other).all()


@pytest.mark.parametrize("score", [pruning_scores.taylor, pruning_scores.magnitude])
@pytest.mark.parametrize(
    "pattern",
    [jm.Bitmask, lambda d: jm.Blocks(d, block=(4, 4)), jm.Inputs, lambda d: jm.Outputs(d, size=2)],
)
def test_any_score_pattern_distribution_and_schedule_are_one_expression(score, pattern):
    params = {"up": draw(32, 24), "down": draw(24, 32)}
    loss = lambda p, x: jnp.square(jnp.tanh(x @ p["up"]) @ p["down"] - x).mean()
    measure = lambda p: jm.gradients(loss, p, [(draw(9, 32),), (draw(8, 32),)])
    spread = lambda d: jm.erdos_renyi(params, d, where=".*")
    plans = [
        {path: jm.Prune(pattern(d), score) for path, d in spread(share).items()}
        for share in (0.75, 0.5)
    ]
    got = jm.decode(jm.iterated(params, plans, measure))
    first = jm.decode(jm.encode(params, plans[0], stats=measure(params)))
    for path in params:
        assert 0.4 < float((got[path] != 0).mean()) < 0.6
        assert not ((got[path] != 0) & (first[path] == 0)).any()  # dropped weights stay dropped
    again = jm.encode(first, plans[1], stats=measure(first))
    jax.tree.map(np.testing.assert_array_equal, got, jm.decode(again))


SOLVERS = [
    jm.Wanda(jm.Bitmask(0.5)),
    jm.RIA(jm.NM(2, 4)),
    jm.SparseGPT(jm.Chain((jm.NM(2, 4), jm.Int(4, group=8)))),
    jm.Refit(jm.SparseGPT(jm.Bitmask(0.5))),
    jm.Permute(jm.SparseGPT(jm.NM(2, 4))),
]


@pytest.mark.parametrize("codec", SOLVERS, ids=str)
def test_a_solver_without_stats_is_refused_but_has_a_shape(codec):
    w = draw(3, 32, 24)
    moments = jm.Moments(jnp.tile(jnp.eye(32), (3, 1, 1)), *[jnp.ones((3, 32))] * 2, jnp.ones(3))
    abstract = jax.eval_shape(codec.encode, w)
    leaf = jm.encode({"w": w}, {"w": codec}, stats={"w": moments})["w"]
    shapes = lambda tree: jax.tree.map(lambda a: (a.shape, a.dtype), tree)
    assert shapes(abstract) == shapes(leaf)
    with pytest.raises(ValueError, match="wants the stats"):
        codec.encode(w)
    with pytest.raises(ValueError, match=r"w: .*wants the stats"):
        jm.encode({"w": w}, {"w": codec})
    assert jm.Plan.from_json(jm.Plan({"w": codec}).to_json()) == {"w": codec}


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: jm.Wanda(jm.Int(4)), TypeError, "takes a sparse codec or a Chain"),
        (lambda: jm.SparseGPT(jm.Chain((jm.Coo(0.1), jm.Int(4)))), TypeError, "rounds values of"),
        (lambda: encoded(jm.Refit(jm.Int(4))), TypeError, "sparse codec of float values"),
        (lambda: jm.Refit(jm.NM(2, 4), steps=0), ValueError, "at least 1 step, got 0"),
        (lambda: jm.Permute(jm.Wanda(jm.Bitmask(0.5))), TypeError, "Permute takes an NM"),
        (lambda: jm.Permute(jm.NM(2, 4), -1), ValueError, "at least 0 steps, got -1"),
        (lambda: encoded(jm.Permute(jm.NM(2, 7))), ValueError, "multiple of 7, got 160"),
        (
            lambda: jm.SparseGPT(jm.NM(2, 4)).encode(
                jnp.ones((8, 4)), stats=jm.Moments(*[jnp.ones(8)] * 3, jnp.ones(()))
            ),
            ValueError,
            'moments="gram"',
        ),
    ],
)
def test_a_wrong_codec_or_argument_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_zero_row_and_an_input_that_was_always_zero_stay_finite():
    w, _, moments = problem()
    w = w.at[:, 3].set(0.0)
    gram = moments.second.at[5].set(0.0).at[:, 5].set(0.0)
    assert jnp.isfinite(jit(inverse_factor)(gram)).all()
    moments = jm.Moments(gram, moments.mean, moments.absmax, moments.count)
    leaf = jit(jm.Refit(jm.SparseGPT(jm.Bitmask(0.5))).encode, static_argnums=1)(w, (-2,), moments)
    assert jnp.isfinite(leaf.decode()).all() and (leaf.decode()[:, 3] == 0).all()
