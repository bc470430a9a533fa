"""QERA: the correction of a given rank that leaves the least error of the output."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmem as jm

draw = lambda *shape: jax.random.normal(jax.random.key(sum(shape)), shape)
X = draw(300, 24) @ (draw(24, 24) * jnp.exp(draw(24))[None])
W = draw(2, 24, 20)
MOMENTS = jm.stats(lambda p, x: jnp.einsum("bk,lkn->lbn", x, p["w"]), {"w": W}, [(X,)])["w"]
EXACT = jm.QERA(jm.Int(3), 4, factors=None)


def loss(leaf):
    return float(jnp.square(jnp.einsum("bk,lkn->lbn", X, leaf.decode() - W)).sum())


def test_it_leaves_the_singular_values_beyond_the_rank():
    rest = np.asarray(W - jm.Int(3).encode(W).decode(), "f8")
    least = sum((np.linalg.svd(np.asarray(X, "f8") @ r)[1][4:] ** 2).sum() for r in rest)
    np.testing.assert_allclose(loss(EXACT.encode(W, stats=MOMENTS)), least, rtol=1e-3)


def test_factors_in_8_bits_add_little_error():
    exact, small = EXACT.encode(W, stats=MOMENTS), jm.QERA(jm.Int(3), 4).encode(W, stats=MOMENTS)
    half = jm.QERA(jm.Int(3), 4, factors=jm.Cast("float16")).encode(W, stats=MOMENTS)
    assert jm.nbytes(small) < jm.nbytes(half) < jm.nbytes(exact)
    assert loss(half) < 1.01 * loss(exact)
    assert loss(small) < 1.1 * loss(exact)
    assert jm.nbytes(half) == jm.nbytes(jm.Int(3).encode(W)) + 2 * 2 * 4 * (24 + 20)


def test_it_improves_gptq_and_a_second_round_improves_it_again():
    gptq = jm.GPTQ(jm.Search(jm.Int(3, group=8, symmetric=False)))
    both = jm.QERA(gptq, 4).encode(W, stats=MOMENTS)
    second_round = jm.QERA(gptq, 4, rounds=2).encode(W, stats=MOMENTS)
    assert loss(both) < 0.7 * loss(gptq.encode(W, stats=MOMENTS))
    assert loss(second_round) < 0.9 * loss(both)
    assert jm.nbytes(second_round) == jm.nbytes(both)


def test_diagonal_moments_are_enough():
    diagonal = jm.Moments(MOMENTS.diag, MOMENTS.mean, MOMENTS.absmax, MOMENTS.count)
    got = jm.QERA(jm.Int(3), 4).encode(W, stats=diagonal)
    assert loss(got) < loss(jm.Sum((jm.Int(3), jm.LowRank(4))).encode(W))


@pytest.mark.parametrize("nonzero", ["nothing", "one column"])
def test_singular_moments_give_a_finite_leaf(nonzero):
    gram = jnp.zeros((24, 24))
    gram = gram if nonzero == "nothing" else gram.at[3, 3].set(2.0)
    moments = jm.Moments(gram, jnp.zeros(24), jnp.diagonal(gram), jnp.float32(1))
    got = jm.QERA(jm.Int(3), 4).encode(W[0], stats=moments).decode()
    assert jnp.isfinite(got).all()
    assert jnp.abs(got[3] - W[0, 3]).max() < 0.02 or nonzero == "nothing"


def test_missing_stats_a_rank_that_saves_nothing_and_no_rounds_are_refused():
    with pytest.raises(ValueError, match=r"^w: .*wants the stats"):
        jm.encode({"w": W}, {"w": jm.QERA(jm.Int(3), 4)})
    with pytest.raises(ValueError, match="saves nothing"):
        jm.QERA(jm.Int(3), 11).encode(W, stats=MOMENTS)
    for arguments in (dict(rank=0), dict(rounds=0)):
        with pytest.raises(ValueError, match="at least 1"):
            jm.QERA(jm.Int(3), **arguments)


def test_it_is_written_to_and_read_from_a_plan():
    plan = jm.Plan({"w": jm.QERA(jm.GPTQ(jm.Int(4)), 8, factors=jm.Cast("float16"))})
    assert jm.Plan.from_json(plan.to_json()) == plan
