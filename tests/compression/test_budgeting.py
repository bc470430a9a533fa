"""A budget's plan is the best one, never a byte too large, and the same from every kind of tree."""

import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmem as jm
from jaxmem.compression import pareto_fronts
from jaxmem.compression.knapsack import least_loss
from jaxmem.compression.pareto_fronts import least_by_fronts
from jaxmem.core.lazy import Lazy

CODECS = [jm.Int(b, group=16) for b in (2, 4, 8)]
X = jnp.ones((3, 32))


def weights(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"a": (32, 48), "b": (32, 32), "c": (32, 16)}
    tree = {name: jnp.asarray(rng.standard_t(4, s), jnp.float32) for name, s in shapes.items()}
    return tree | {"bias": jnp.ones(7), "steps": jnp.ones((2, 2), jnp.int32)}


def stack(seed=0):
    rng = np.random.default_rng(seed)
    made = lambda *shape: jnp.asarray(rng.standard_t(4, shape), jnp.float32)
    params = {"up": made(5, 32, 32), "down": made(5, 32, 24), "head": made(32, 64)}
    return params | {"norm": jnp.ones((5, 32))}


def run(params, x):
    def layer(x, p):
        x = x * p["norm"][None]
        return x + x @ p["up"] + jnp.pad(x @ p["down"], ((0, 0), (0, 8))), None

    layers = {name: params[name] for name in ("up", "down", "norm")}
    return jax.lax.scan(layer, x, layers)[0] @ params["head"]


def as_lazy(params):
    def lazy(w):
        stacked = w.ndim == 3
        return Lazy(w.shape, w.dtype, lambda i: np.asarray(w if i is None else w[i]), stacked)

    return jax.tree.map(lazy, params)


@pytest.fixture(scope="module")
def brute():
    """{path: {codec: (bytes, squared relative error)}} of `weights()`."""

    def both(w, codec):
        leaf = jax.jit(codec.encode)(w)
        error = np.square(w - jax.jit(jm.decode)(leaf)).sum()
        return jm.nbytes(leaf), float(error / np.square(w).sum())

    return {p: {c: both(w, c) for c in CODECS} for p, w in weights().items() if p in "abc"}


@pytest.mark.parametrize("limit", [1900, 2500, 3200, 4300])
def test_no_other_choice_loses_less_in_the_same_bytes(limit, brute):
    params = weights()
    plan = jm.budget(params, nbytes=limit, candidates=CODECS)
    kept = jm.nbytes((params["bias"], params["steps"]))
    total = lambda i, codecs: sum(brute[p][c][i] for p, c in zip("abc", codecs))
    fitting = [c for c in itertools.product(CODECS, repeat=3) if kept + total(0, c) <= limit]
    best = min(total(1, codecs) for codecs in fitting)
    assert jm.nbytes(jm.encode(params, plan)) <= limit
    assert total(1, [plan[p] for p in "abc"]) == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize("seed", range(6))
def test_theleast_loss_is_solved_exactly(seed):
    rng = np.random.default_rng(seed)
    sizes = list(rng.integers(1, 10**9, (5, 4)))
    losses = list(10 ** rng.uniform(-9, 2, (5, 4)))
    choices = list(itertools.product(range(4), repeat=5))
    total = lambda table, choice: sum(row[i] for row, i in zip(table, choice))
    limit = sorted(total(sizes, c) for c in choices)[len(choices) // 3]
    best = min(total(losses, c) for c in choices if total(sizes, c) <= limit)
    picked = least_loss(sizes, losses, limit)
    assert total(sizes, picked) <= limit
    assert total(losses, picked) == pytest.approx(best, rel=2e-6)


def test_a_limit_is_met_to_the_byte():
    params = weights()
    size = jm.nbytes(jm.encode(params, jm.choose(params, {"[abc]": CODECS[1]})))
    exact = jm.budget(params, nbytes=size, candidates=CODECS[1:])
    assert dict(exact) == dict.fromkeys("abc", CODECS[1])
    with pytest.raises(ValueError, match=f"smallest reachable size is {size}"):
        jm.budget(params, nbytes=size - 1, candidates=CODECS[1:])


def test_vectors_and_integers_are_kept_and_counted():
    plan = jm.budget(weights(), nbytes=10_000, candidates=CODECS)
    assert set(plan) == {"a", "b", "c"}


def test_stacked_vectors_are_kept_where_uses_tell():
    params = stack()
    plan = jm.budget(params, nbytes=60_000, candidates=CODECS, uses=jm.uses(run, params, X))
    assert set(plan) == {"up", "down", "head"}


def test_lazy_eager_and_repeated_plans_are_equal():
    params = stack()
    how = {"nbytes": 11_500, "candidates": CODECS, "uses": jm.uses(run, params, X)}
    plan = jm.budget(params, **how)
    assert plan == jm.budget(params, **how) == jm.budget(as_lazy(params), **how)
    assert len(set(plan.values())) > 1


def test_layers_stacked_or_apart_weigh_together_as_much_as_a_head():
    params = stack()
    apart = {f"layers_{i}": {"up": params["up"][i]} for i in range(5)} | {"head": params["head"]}
    share = {f"layers_{i}/up": 0.2 for i in range(5)} | {"head": 1.0}
    how = {"nbytes": 5_000, "candidates": CODECS}
    assert jm.budget(apart, **how) == jm.budget(apart, **how, sensitivity=share)
    together = {"up": params["up"], "head": params["head"]}
    each = {"up": np.full(5, 0.2), "head": 1.0}
    assert jm.budget(together, **how) == jm.budget(together, **how, sensitivity=each)


def test_a_table_that_is_only_looked_up_weighs_less():
    params = {"table": weights()["b"], "head": weights()["b"].T}
    uses = jm.uses(lambda p, ids: p["table"][ids] @ p["head"], params, jnp.zeros(3, jnp.int32))
    size = sum(jm.nbytes(c.encode(params["head"])) for c in CODECS[::2])
    plan = jm.budget(params, nbytes=size, candidates=CODECS[::2], uses=uses)
    assert (plan["table"].bits, plan["head"].bits) == (2, 8)


def test_rules_name_the_candidates_of_each_weight():
    plan = jm.budget(weights(), nbytes=9_000, candidates={"a": CODECS[:1], "[ab]": CODECS[2:]})
    assert dict(plan) == {"a": CODECS[0], "b": CODECS[2]}
    with pytest.raises(ValueError, match="matches no leaf"):
        jm.budget(weights(), nbytes=9_000, candidates={"kernel": CODECS})


def test_keep_and_codecs_that_see_the_whole_matrix_are_candidates_too():
    params = {"w": weights()["b"]}
    for limit, best in ((4_096, jm.Keep()), (1_024, jm.LowRank(4))):
        plan = jm.budget(params, nbytes=limit, candidates=[jm.Keep(), jm.LowRank(4)])
        assert plan["w"] == best


def test_abstract_weights_get_a_plan():
    shapes = jax.eval_shape(lambda tree: tree, stack())
    plan = jm.budget(shapes, nbytes=11_500, candidates={"up|down|head": CODECS})
    assert jm.nbytes(jm.encode(shapes, plan)) <= 11_500


@pytest.mark.parametrize("given", [{}, {"w": -1.0}, {"w": np.ones(3)}, {"w": np.nan}])
def test_a_wrong_sensitivity_is_refused(given):
    with pytest.raises(ValueError, match="w"):
        params = {"w": jnp.ones((8, 8))}
        jm.budget(params, nbytes=1_000, candidates=CODECS, sensitivity=given)


def uneven():
    """A stack whose first layers are worth more, and how to budget it."""
    params = {name: w / 8 for name, w in stack().items()}  # so that x does not grow
    worth = {p: np.linspace(9, 1, 5) for p in ("up", "down")} | {"head": 1.0}
    uses = jm.uses(run, params, X)
    return params, dict(candidates=CODECS, sensitivity=worth, uses=uses)


def lost(plan, params, worth):
    """What a plan of `run` loses, by layers that are encoded one by one."""
    enc = jm.encode(params, plan)
    total = 0.0
    for path in ("up", "down", "head"):
        w, got = np.asarray(params[path]), np.asarray(jm.decode(enc[path]))
        ratio = np.square(w - got).sum((-1, -2)) / np.square(w).sum((-1, -2))
        total += (ratio * worth[path]).sum()
    return total


@pytest.mark.parametrize("limit", [5_000, 7_000, 9_000])
def test_a_codec_a_run_of_layers_loses_no_more_than_one_a_stack_and_runs(limit):
    params, how = uneven()
    how["nbytes"], worth = limit, how["sensitivity"]
    plans = [jm.budget(params, **how, runs=runs) for runs in (1, 5)]
    assert lost(plans[1], params, worth) < lost(plans[0], params, worth)
    enc = jm.encode(params, plans[1])
    assert jm.nbytes(enc) <= limit and any("[" in path for path in plans[1])
    want = run(jm.decode(enc), X)
    np.testing.assert_allclose(jm.lift(run)(enc, X), want, rtol=1e-5, atol=1e-4)
    lazy = jm.budget(as_lazy(params), **how, runs=5)
    assert lazy == plans[1]


def test_runs_of_a_stack_are_cut_alike_and_neighbours_of_one_codec_are_one():
    params, how = uneven()
    assert jm.budget(params, nbytes=10**6, runs=5, **how).keys() == {"up", "down", "head"}
    cut = jm.budget(params, nbytes=7_000, runs=2, **how)
    assert all(name.split("[")[-1] in ("0:2]", "2:5]", name) for name in cut)
    with pytest.raises(ValueError, match="at least 1 run, got 0"):
        jm.budget(params, nbytes=7_000, runs=0, **how)


def test_a_stack_that_a_candidate_takes_together_stays_whole():
    params = {"up": stack()["up"], "down": stack()["down"]}
    plan = jm.budget(params, nbytes=10**5, candidates=[jm.Int(4), jm.Basis(2)], runs=5)
    assert set(plan) <= {"up", "down"}


@pytest.mark.parametrize("seed", range(4))
def test_dynamic_programming_and_highs_choose_the_same(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    bits = np.sort(rng.uniform(2, 8, (12, 9)), 1)
    sizes = list((10 ** rng.uniform(3, 8, (12, 1)) * bits).astype(int))
    losses = list(10 ** rng.uniform(-4, 0, (12, 1)) * 4.0**-bits * rng.uniform(0.6, 1.6, (12, 9)))
    limit = int(sum(row.mean() for row in sizes))
    exact = least_by_fronts(sizes, losses, limit)
    monkeypatch.setattr(pareto_fronts, "MOST_SUMS", 1)
    assert least_by_fronts(sizes, losses, limit) is None
    total = lambda choice: sum(row[i] for row, i in zip(losses, choice))
    assert total(exact) == pytest.approx(total(least_loss(sizes, losses, limit)), rel=2e-6)
    assert sum(row[i] for row, i in zip(sizes, exact)) <= limit


def test_a_small_budget_wants_no_scipy(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    rows = [np.array([1, 2, 4])] * 3, [np.array([9.0, 5.0, 0.0])] * 3
    assert sorted(least_loss(*rows, 8)) == [1, 1, 2]
    with pytest.raises(ImportError, match=r"jaxmem\[demo\]"):
        least_loss(*rows, 8, [np.ones(3)] * 3, 3.0)
