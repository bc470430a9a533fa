"""One budget chooses among techniques of every kind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmem as jm


def weights(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"a": (32, 48), "b": (32, 32), "c": (32, 16)}
    tree = {name: jnp.asarray(rng.standard_t(4, s), jnp.float32) for name, s in shapes.items()}
    return tree | {"bias": jnp.ones(7), "steps": jnp.ones((2, 2), jnp.int32)}


def kinds(seed=0):
    """Weights of low rank, of few that are not zero, of no structure, and three like layers."""
    draw = lambda i, *shape: jax.random.normal(jax.random.key(seed + i), shape)
    few = draw(2, 64, 64) * (jax.random.uniform(jax.random.key(9), (64, 64)) < 0.3).astype(
        jnp.float32
    )
    like = draw(4, 64, 64)[None] + 0.001 * draw(5, 3, 64, 64)
    return {
        "low": draw(0, 64, 8) @ draw(1, 8, 64),
        "few": few,
        "plain": draw(3, 64, 64),
        "like": like,
    }


@pytest.mark.slow
def test_one_budget_chooses_each_technique_where_it_is_right():
    each = jm.Chain((jm.Bitmask(0.35), jm.Int(8))), jm.Chain((jm.LowRank(8), jm.Int(8)))
    right = {
        "few": each[0],
        "low": each[1],
        "plain": jm.Int(3, group=64, symmetric=False),
        "like": jm.Shared(1, codec=jm.Int(8)),
    }
    rules = {"like": list(right.values()), ".*": list(right.values())[:3]}
    plan = jm.budget(kinds(), nbytes=9_400, candidates=rules, sensitivity=dict.fromkeys(right, 1.0))
    assert plan == right
    assert jm.nbytes(jm.encode(kinds(), plan)) <= 9_400


@pytest.mark.slow
def test_techniques_are_by_the_best_solver_that_the_stats_allow():
    x, params = jax.random.normal(jax.random.key(0), (40, 32)), weights()
    fn = lambda p, x: x @ p["a"]
    for moments, solvers in (("gram", (jm.GPTQ, jm.SparseGPT)), ("diag", (jm.Search, jm.Wanda))):
        stats = jm.stats(fn, params, [(x,)], moments=moments)
        found = jm.techniques(params, stats=stats)
        assert {type(c) for c in found["a"]} == {*solvers, jm.QERA, jm.Chain}
        assert {type(c) for c in found["b"]} == {jm.Search, jm.Chain}  # of no moments


def test_one_budget_mixes_techniques_by_what_each_weight_is_like():
    draw = lambda i, *shape: jax.random.normal(jax.random.key(i), shape)
    params = {
        "thin": draw(0, 128, 8) @ draw(1, 8, 128) / 3,
        "hollow": jnp.where(jm.Bitmask(0.35).mask(draw(2, 128, 128)), draw(3, 128, 128), 0),
        "full": draw(4, 128, 128),
    }
    pruned = jm.Chain((jm.Bitmask(0.35), jm.Int(4, group=64)))
    forms = [jm.Int(3, group=64), jm.Int(4, group=64), pruned, jm.LowRank(8)]
    plan = jm.budget(params, nbytes=24_500, candidates=forms)
    assert plan == {"thin": forms[3], "hollow": pruned, "full": forms[1]}


def test_techniques_refuse_a_kind_that_is_not_there():
    with pytest.raises(ValueError, match="expected some of int, sparsity, n:m, rank"):
        jm.techniques(weights(), ["ints"])
