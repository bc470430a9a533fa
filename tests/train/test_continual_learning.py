"""What is kept of earlier tasks: in its bytes, and as its formulas say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cheap_jit import jit

import jaxmem as jm
from jaxmem.train import (
    adapter_directions,
    anchor,
    anchor_penalty,
    orthogonality,
    squared_gradients,
)
from jaxmem.training import ContinualMemory

PAIRS = jm.adapters.adapters(jax.random.key(0), {"a": {"kernel": jnp.ones((3, 64, 32))}}, 4)
PAIRS = jax.tree.map(lambda x: x + jax.random.normal(jax.random.key(1), x.shape) / 8, PAIRS)


def filled(most, seed=0, count=400, size=5):
    reservoir = jm.data.Reservoir(most, vocabulary=1000, seed=seed)
    for i in range(count):
        reservoir.add(np.arange(size) + i, target=i)
    return reservoir


def test_a_reservoir_keeps_ids_and_targets_within_its_bytes():
    reservoir = filled(1024)
    assert 1000 < reservoir.nbytes == len(reservoir.state()) <= 1024
    assert len(reservoir) == (1024 - 28) // (8 + -(-5 * 10 // 8))  # 10 bits an id
    for example in reservoir:
        np.testing.assert_array_equal(example["ids"], np.arange(5) + example["target"])
    again = jm.data.Reservoir.from_state(reservoir.state(), 1024)
    for one in (reservoir, again):
        one.add([7] * 30, target=9)
    assert again.state() == reservoir.state() and again.seen == 401


def test_a_reservoir_keeps_early_and_late_examples_alike():
    kept = [example["target"] for seed in range(60) for example in filled(400, seed, 100)]
    counts = np.histogram(kept, 4, (0, 100))[0]
    assert np.abs(counts - counts.mean()).max() < 4 * counts.mean() ** 0.5


def test_damaged_states_are_named():
    state = filled(200).state()
    for wrong in (state[:-1], state + b"0", state[:20]):
        with pytest.raises(ValueError, match="state"):
            jm.data.Reservoir.from_state(wrong, 4096)


def test_squared_gradients_are_those_of_each_row():
    w, x = jax.random.normal(jax.random.key(0), (4,)), jax.random.normal(jax.random.key(1), (6, 4))
    loss = lambda w, rows: jnp.square((rows * w[None]).sum(-1)).mean()
    got = jit(lambda w, x: squared_gradients(loss, w, x))(w, x)
    want = np.square(2 * np.asarray(x @ w)[:, None] * np.asarray(x)).mean(0)
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_an_anchor_holds_what_mattered_in_three_bytes_and_adds_up_tasks():
    fisher = jax.tree.map(lambda x: jnp.square(x) + 1e-3, PAIRS)
    count = sum(x.size for x in jax.tree.leaves(PAIRS))
    first = anchor(PAIRS, fisher)
    second = anchor(PAIRS, fisher, before=first, decay=0.5)
    assert jm.nbytes(first) == jm.nbytes(second) < 3.1 * count
    moved = jax.tree.map(lambda x: x + 0.5, PAIRS)
    want = 0.125 * sum(float(x.sum()) for x in jax.tree.leaves(fisher))
    np.testing.assert_allclose(anchor_penalty(moved, first), want, rtol=0.02)
    np.testing.assert_allclose(anchor_penalty(moved, second), 1.5 * want, rtol=0.02)
    slope = jit(jax.grad(anchor_penalty))(moved, first)["a/kernel"]["v"]
    np.testing.assert_allclose(slope.sum(), 0.5 * fisher["a/kernel"]["v"].sum(), rtol=0.05)


def test_directions_are_those_that_adapters_read():
    kept = jit(lambda p: adapter_directions(p, 2))(PAIRS)["a/kernel"]
    product = np.asarray(PAIRS["a/kernel"]["u"] @ PAIRS["a/kernel"]["v"])
    _, sizes, vectors = np.linalg.svd(product, full_matrices=False)
    gram = lambda rows: rows.swapaxes(-1, -2) @ rows
    want = gram(sizes[:, :2, None] * vectors[:, :2])
    np.testing.assert_allclose(gram(np.float32(kept)), want, atol=0.02 * np.abs(want).max())
    both = adapter_directions(PAIRS, 2, before={"a/kernel": kept})["a/kernel"]
    np.testing.assert_allclose(
        np.linalg.norm(np.float32(both), axis=-1), 2**0.5 * sizes[:, :2], rtol=0.02
    )


def test_what_is_orthogonal_costs_nothing():
    kept = adapter_directions(PAIRS, 2)
    rows = np.float32(kept["a/kernel"])
    basis = np.linalg.qr(rows.swapaxes(-1, -2))[0]
    v = np.asarray(PAIRS["a/kernel"]["v"])
    apart = v - v @ basis @ basis.swapaxes(-1, -2)
    pairs = {"a/kernel": {"u": PAIRS["a/kernel"]["u"], "v": jnp.asarray(apart)}}
    assert orthogonality(pairs, kept) < 1e-6 < orthogonality(PAIRS, kept)


@pytest.mark.parametrize("factors", [{"elastic": 2.0}, {"orthogonal": 3.0}, {}])
def test_a_memory_keeps_to_its_bytes_through_tasks(factors):
    memory = ContinualMemory(8192, PAIRS, vocabulary=1000, **factors)
    assert memory.penalty(PAIRS) == 0
    loss = lambda pairs, rows: sum(jnp.square(x).sum() for x in jax.tree.leaves(pairs))
    for task in range(3):
        examples = ((np.arange(4), task) for _ in range(900))
        memory.learnt(PAIRS, loss, jnp.ones((2, 1)), examples)
        assert memory.nbytes <= 8192 and len(memory.reservoir) > 100
    assert (memory.penalty(jax.tree.map(lambda x: x + 1, PAIRS)) > 0) == bool(factors)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: jm.data.Reservoir(9, vocabulary=10), "most is 9 bytes, expected at least 28"),
        (lambda: filled(99).add([1000]), "expected below 1000"),
        (lambda: filled(99).add([]), "0 ids with the target 0, expected 1 to 65535"),
        (lambda: filled(99, count=0).sample(1, None), "the reservoir is empty"),
        (lambda: adapter_directions(PAIRS, 5), "rank is 5, expected at most that of the pairs, 4"),
        (lambda: adapter_directions(PAIRS, 1, before={"b": None}), "directions are of .'b'."),
        (lambda: orthogonality(PAIRS, {"b": jnp.ones(1)}), "no directions of 'a/kernel'"),
        (
            lambda: orthogonality({"a": {"down": jnp.ones(1)}}, {}),
            "the adapter of 'a' has .'down'., expected",
        ),
        (lambda: anchor(PAIRS, {"a": jnp.ones(1)}), "not trees of one structure"),
        (lambda: anchor(PAIRS, PAIRS, decay=-1.0), "decay is -1.0"),
        (
            lambda: ContinualMemory(2048, PAIRS, vocabulary=9, elastic=1.0),
            "most is 2048 bytes, and what is kept of these adapters takes",
        ),
    ],
)
def test_what_cannot_be_kept_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()
