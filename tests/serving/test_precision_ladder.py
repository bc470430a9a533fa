"""A ladder follows the load without swinging, and the bytes of weights that it drops come back."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmem as jm
from jaxmem.serving.precision_ladder import relief

RUNGS = [jm.Rung(2, weight_bits=8), jm.Rung(4, weight_bits=6), jm.Rung(4, weight_bits=4)]


def weights():
    w = np.random.default_rng(0).normal(size=(64, 96)).astype(np.float32)
    return {"w": jm.Planes(group=32).encode(jnp.asarray(w)), "bias": jnp.ones(96)}


def use(taken, capacity=100):
    return jm.pages.Usage(capacity, taken, capacity - taken, 0, 0, 0.0, 0.0)


def test_it_steps_by_pages_and_queue_and_stays_between_the_limits():
    ladder = jm.Ladder(weights(), RUNGS)
    steps = [(91, 0), (91, 0), (99, 9), (80, 5), (70, 0), (69, 1), (69, 0), (10, 0), (10, 0)]
    at = [RUNGS.index(ladder.step(use(taken), waiting)) for taken, waiting in steps]
    assert at == [1, 2, 2, 2, 2, 2, 1, 0, 0]
    assert ladder.step(use(10), waiting=1) == RUNGS[1]  # rows are missing, and no pages
    assert ladder.step(use(10), waiting=1) == RUNGS[1]  # the next rung has no more of them


def test_a_swinging_load_between_the_limits_moves_nothing():
    ladder = jm.Ladder(weights(), RUNGS)
    ladder.step(use(95), 0)
    rng = np.random.default_rng(0)
    assert all(ladder.step(use(int(n)), 0) == RUNGS[1] for n in rng.integers(70, 91, 100))


def test_bytes_of_dropped_planes_come_back_and_the_weights_return_exactly():
    live = lambda: sum(x.nbytes for x in jax.live_arrays())
    gc.collect()
    before, dense = live(), jm.decode(weights())
    ladder, first = jm.Ladder(weights(), RUNGS), jm.decode(weights())
    at_8 = live()
    for taken in (95, 95):
        ladder.step(use(taken), 0)
    gc.collect()
    four = 64 * 96 // 8 * 4
    assert at_8 - live() == four == ladder.host_nbytes
    expected = jm.decode(jm.at_bits(weights(), 4))
    assert (jm.decode(ladder.params)["w"] == expected["w"]).all()
    for _ in range(2):
        ladder.step(use(1), 0)
    assert (jm.decode(ladder.params)["w"] == dense["w"]).all() and before < at_8
    assert (first["w"] == dense["w"]).all() and ladder.host_nbytes == four


def test_programs_are_compiled_before_and_the_report_has_their_bytes():
    ladder = jm.Ladder(weights(), RUNGS[::2])
    fn = jm.lift(lambda params, x: x @ params["w"] + params["bias"][None])
    with pytest.raises(RuntimeError, match="call compile"):
        ladder.program  # noqa: B018
    ladder.compile(lambda rung: (fn, (jax.ShapeDtypeStruct((rung.rows, 64), jnp.float32),)))
    for taken, rung in ((50, RUNGS[0]), (95, RUNGS[2])):
        assert ladder.step(use(taken), 0) == rung
        x = jnp.ones((rung.rows, 64))
        y = ladder.program(ladder.params, x)
        np.testing.assert_allclose(y, fn(ladder.params, x), rtol=1e-5, atol=1e-4)
    eight, four = ladder.report()
    assert eight.weights - four.weights == 64 * 96 // 2
    assert eight.weights == jm.nbytes(weights()) and four.arguments >= four.weights


@pytest.mark.parametrize(
    ("rungs", "options", "message"),
    [
        ([], {}, "expected one Rung or more"),
        ([RUNGS[2], RUNGS[1]], {}, "expected no more bits and no fewer rows"),
        ([jm.Rung(4), jm.Rung(2)], {}, "expected no more bits and no fewer rows"),
        ([jm.Rung(4), jm.Rung(4)], {}, "twice"),
        (RUNGS, {"low": 0.95}, "expected 0 < low < high <= 1"),
    ],
)
def test_rungs_and_limits_that_cannot_be_are_refused(rungs, options, message):
    with pytest.raises(ValueError, match=message):
        jm.Ladder(weights(), rungs, **options)


def test_weights_without_planes_or_bits_are_refused():
    with pytest.raises(ValueError, match="no leaf of Planes"):
        jm.Ladder({"w": jnp.ones((4, 4))}, RUNGS)
    with pytest.raises(ValueError, match="expected 2 to 6"):
        jm.Ladder(jm.at_bits(weights(), 6), RUNGS)
    for wrong in ({"rows": 0}, {"rows": 1, "weight_bits": 9}, {"rows": 1, "cache_bits": 3}):
        with pytest.raises(ValueError, match="expected"):
            jm.Rung(**wrong)


@pytest.mark.parametrize(
    ("pages", "freed"),
    [
        (0, {}),
        (3, {"prefixes": 3}),
        (6, {"prefixes": 4, "cold": 2}),
        (9, {"prefixes": 4, "cold": 3, "swap": 2}),
        (14, {"prefixes": 4, "cold": 3, "swap": 5, "re-read": 2}),
    ],
)
def test_pages_are_freed_where_they_cost_least(pages, freed):
    ways = {"prefixes": 4, "cold": 3, "host": 5, "running": 8}
    assert jm.Ladder.relief(pages, **ways) == freed
    with pytest.raises(ValueError, match="16 pages cannot be freed"):
        relief(16, **ways)
