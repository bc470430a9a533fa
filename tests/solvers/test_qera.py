"""QERA: the correction of its rank that mends most of what a codec computes wrongly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmem as jm

pytestmark = pytest.mark.usefixtures("quickly_compiled")

draw = lambda *shape: jax.random.normal(jax.random.key(sum(shape)), shape)
X = draw(300, 24) @ (draw(24, 24) * jnp.exp(draw(24))[None])
W = draw(2, 24, 20)
FED = jm.stats(lambda p, x: jnp.einsum("bk,lkn->lbn", x, p["w"]), {"w": W}, [(X,)])["w"]
EXACT = jm.QERA(jm.Int(3), 4, factors=None)


def loss(leaf):
    return float(jnp.square(jnp.einsum("bk,lkn->lbn", X, leaf.decode() - W)).sum())


def test_it_leaves_the_singular_values_beyond_the_rank():
    rest = np.asarray(W - jm.Int(3).encode(W).decode(), "f8")
    least = sum((np.linalg.svd(np.asarray(X, "f8") @ r)[1][4:] ** 2).sum() for r in rest)
    np.testing.assert_allclose(loss(EXACT.encode(W, stats=FED)), least, rtol=1e-3)


def test_factors_in_bytes_lose_little():
    exact, small = EXACT.encode(W, stats=FED), jm.QERA(jm.Int(3), 4).encode(W, stats=FED)
    half = jm.QERA(jm.Int(3), 4, factors=jm.Cast("float16")).encode(W, stats=FED)
    assert jm.nbytes(small) < jm.nbytes(half) < jm.nbytes(exact)
    assert loss(half) < 1.01 * loss(exact)
    assert loss(small) < 1.1 * loss(exact)
    assert jm.nbytes(half) == jm.nbytes(jm.Int(3).encode(W)) + 2 * 2 * 4 * (24 + 20)


def test_it_adds_to_gptq_and_turns_never_lose():
    gptq = jm.GPTQ(jm.Search(jm.Int(3, group=8, symmetric=False)))
    both = jm.QERA(gptq, 4).encode(W, stats=FED)
    turned = jm.QERA(gptq, 4, rounds=3).encode(W, stats=FED)
    assert loss(both) < 0.7 * loss(gptq.encode(W, stats=FED))
    assert loss(turned) < 0.9 * loss(both)
    assert jm.nbytes(turned) == jm.nbytes(both)


def test_a_diagonal_of_the_moments_will_do():
    diagonal = jm.Moments(FED.diag, FED.mean, FED.absmax, FED.count)
    got = jm.QERA(jm.Int(3), 4).encode(W, stats=diagonal)
    assert loss(got) < loss(jm.Sum((jm.Int(3), jm.LowRank(4))).encode(W))


@pytest.mark.parametrize("fed", ["nothing", "one column"])
def test_singular_moments_give_a_finite_leaf(fed):
    gram = jnp.zeros((24, 24))
    gram = gram if fed == "nothing" else gram.at[3, 3].set(2.0)
    moments = jm.Moments(gram, jnp.zeros(24), jnp.diagonal(gram), jnp.float32(1))
    got = jm.QERA(jm.Int(3), 4).encode(W[0], stats=moments).decode()
    assert jnp.isfinite(got).all()
    assert jnp.abs(got[3] - W[0, 3]).max() < 0.02 or fed == "nothing"


def test_what_it_cannot_do_is_refused_by_path():
    with pytest.raises(ValueError, match=r"^w: .*wants the stats"):
        jm.encode({"w": W}, {"w": jm.QERA(jm.Int(3), 4)})
    with pytest.raises(ValueError, match="saves nothing"):
        jm.QERA(jm.Int(3), 11).encode(W, stats=FED)
    for how in (dict(rank=0), dict(rounds=0)):
        with pytest.raises(ValueError, match="at least 1"):
            jm.QERA(jm.Int(3), **how)


def test_it_is_in_plans_and_their_json():
    plan = jm.Plan({"w": jm.QERA(jm.GPTQ(jm.Int(4)), 8, factors=jm.Cast("float16"))})
    assert jm.Plan.from_json(plan.to_json()) == plan
