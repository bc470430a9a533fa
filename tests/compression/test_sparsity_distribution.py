"""Densities: the total is what was asked for, and any score goes with any pattern and spread."""

import jax
import jax.numpy as jnp
import pytest

import jaxmem as jm
from jaxmem.solvers import pruning_scores

draw = lambda *shape: jax.random.normal(jax.random.key(sum(shape)), shape)
PARAMS = {
    "layers": {"up": {"kernel": draw(3, 32, 64)}, "down": {"kernel": 2 * draw(3, 64, 32)}},
    "head": {"kernel": draw(32, 96), "bias": jnp.zeros(96)},
}
SIZES = {p: x.size for p, x in zip(jm.paths(PARAMS), jax.tree.leaves(PARAMS)) if "kernel" in p}
SPREADS = [jm.uniform, jm.erdos_renyi, jm.together]


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_the_total_is_what_was_asked_for(spread, density):
    found = spread(PARAMS, density)
    kept = sum(found.get(path, 1.0) * size for path, size in SIZES.items())
    assert abs(kept / sum(SIZES.values()) - density) < 0.01
    assert all(0 < d < 1 for d in found.values())


@pytest.mark.slow
def test_one_expression_takes_any_score_pattern_and_spread():
    random = pruning_scores.random(0)
    for spread, pattern in zip(SPREADS, (jm.Bitmask, jm.Csr, jm.sparse)):
        densities = spread(PARAMS, 0.3)
        if pattern is jm.sparse:  # a choice among forms, by magnitude
            plan = jm.Plan({path: pattern(d) for path, d in densities.items()})
        else:
            plan = jm.Plan({path: jm.Prune(pattern(d), random) for path, d in densities.items()})
        enc = jm.encode(PARAMS, plan)
        leaves = jax.tree.leaves(jm.decode(enc))
        kept = sum(int((x != 0).sum()) for p, x in zip(jm.paths(PARAMS), leaves) if p in SIZES)
        assert abs(kept / sum(SIZES.values()) - 0.3) < 0.02


def test_a_larger_weight_keeps_more_under_one_threshold():
    found = jm.together(PARAMS, 0.4)
    assert found["layers/down/kernel"] > found["layers/up/kernel"] + 0.1


def test_a_tiny_matrix_is_kept_whole():
    params = {"a": {"kernel": draw(2, 2)}, "b": {"kernel": draw(128, 128)}}
    assert list(jm.erdos_renyi(params, 0.2)) == ["b/kernel"]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: jm.uniform(PARAMS, 1.0), "below 1, got 1.0"),
        (lambda: jm.erdos_renyi(PARAMS, 0.5, "nothing"), "'nothing' matches no leaf"),
        (
            lambda: jm.together(
                {"a": {"kernel": draw(8, 8)}, "b": {"kernel": 0 * draw(8, 8)}}, 0.2
            ),
            "b/kernel would lose all",
        ),
    ],
)
def test_what_cannot_be_is_told(make, message):
    with pytest.raises(ValueError, match=message):
        make()
