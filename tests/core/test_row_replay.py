"""A function of a matrix, computed for some rows, gives those rows of its result."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cheap_jit import jit
from contract_codecs import weight

from jaxmem.core import row_slices
from jaxmem.core.row_replay import RowReplay
from jaxmem.solvers import pruning_scores

GRADIENT = np.linspace(-1, 1, 88 * 48, dtype=np.float32).reshape(88, 48)
SQUARED = jax.jit(lambda x: x * x + 1)  # two calls have the variables of one jaxpr
BY_ROWS = {
    "one function of two values": lambda m: SQUARED(m) - SQUARED(2 * m),
    "one function of its own result": lambda m: SQUARED(SQUARED(m)),
    "clipped twice": lambda m: jnp.clip(m, 0, 5) + jnp.clip(m, 2, 3),
    "share of its column": lambda m: jnp.abs(m) / jnp.abs(m).sum(0)[None],
    "RIA": lambda m: pruning_scores.ria(m, None),
    "Taylor": lambda m: pruning_scores.taylor(m, GRADIENT),
    "standard deviations": lambda m: jax.nn.relu(m - m.mean(0, keepdims=True)) / m.std(),
    "rank": lambda m: jnp.argsort(jnp.argsort(m, -1), -1).astype(jnp.float32),
    "softmax of columns": lambda m: jax.nn.softmax(m, axis=0),
    "transposed": lambda m: (m.T - m.T.max(1, keepdims=True)).T,
    "mapped": jax.vmap(lambda row: row / jnp.abs(row).max()),
    "by its index": lambda m: m * jnp.arange(88.0)[:, None],
}
WHOLE = {
    "Gram matrix": lambda m: m @ m.T @ m,
    "cumulative": lambda m: jnp.cumsum(m, 0),
    "neighbours": lambda m: jnp.concatenate([m[1:], m[:1]]),
    "largest of its column": lambda m: m * jax.nn.one_hot(m.argmax(0), 88, axis=0),
}


@pytest.mark.parametrize("fn", BY_ROWS.values(), ids=BY_ROWS)
def test_some_rows_are_those_of_all(fn, monkeypatch):
    monkeypatch.setattr(row_slices, "BLOCK_WEIGHTS", 2**10)
    w = weight(48, 88)
    replay = RowReplay.of(fn, w, (-2,))
    some = jit(replay.rows)(w[:, 40:56], 40)
    assert jnp.allclose(some, fn(w.T)[40:56], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fn", WHOLE.values(), ids=WHOLE)
def test_what_needs_several_rows_at_once_is_not_computed_by_rows(fn):
    assert RowReplay.of(fn, weight(48, 88), (-2,)) is None
