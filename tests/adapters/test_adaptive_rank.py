"""AdaLoRA keeps the triples that matter, and shrink drops the others from the arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cheap_jit import jit

import jaxmem as jm
from jaxmem.adapters import adapters, adaptive_rank, attach, orthogonality, shrink, triples

KEY = jax.random.key(0)
PARAMS = {"one": {"kernel": jnp.zeros((2, 16, 12))}, "two": {"kernel": jnp.zeros((2, 16, 12))}}
X = jax.random.normal(KEY, (64, 16))


def outputs(params):
    return {name: jnp.einsum("tk,lkn->ltn", X, p["kernel"]) for name, p in params.items()}


def low_rank(rank, key):
    u, v = jax.random.normal(key, (2, 12, rank)), jax.random.normal(key, (2, rank, 16))
    return {"kernel": jnp.einsum("lnr,lrk->lkn", u, v) / 4}


@pytest.fixture(scope="module")
def trained():
    """Triples of rank 4 a weight, of which 2 on average are left: one needs 3, the other 1."""
    wanted = outputs({"one": low_rank(3, KEY), "two": low_rank(1, jax.random.key(1))})
    pairs = triples(KEY, PARAMS, 4)
    tx = adaptive_rank(optax.adam(0.03), 2, begin=40, end=140, every=10)

    def loss(pairs):
        found = outputs(jm.decode(attach(PARAMS, pairs)))
        squares = [jnp.square(found[name] - wanted[name]).mean() for name in wanted]
        return sum(squares) + 0.05 * orthogonality(pairs)

    @jit
    def steps(pairs, state):
        def step(carry, _):
            pairs, state = carry
            value, slope = jax.value_and_grad(loss)(pairs)
            updates, state = tx.update(slope, state, pairs)
            return (optax.apply_updates(pairs, updates), state), value

        return jax.lax.scan(step, (pairs, state), length=400)

    with jax.numpy_dtype_promotion("standard"):
        (pairs, state), losses = steps(pairs, tx.init(pairs))
    return pairs, state, losses


def test_the_average_rank_is_left_where_it_matters(trained):
    pairs, _, losses = trained
    counts = {path: np.asarray((p["e"] != 0).sum(-1)) for path, p in pairs.items()}
    assert counts["one/kernel"].tolist() == [3, 3] and counts["two/kernel"].tolist() == [1, 1]
    assert losses[-1] < 0.05 * losses[0]


def test_shrink_drops_triples_and_changes_no_output(trained):
    pairs, _, _ = trained
    small = shrink(pairs)
    assert {p: x["u"].shape[-1] for p, x in small.items()} == {"one/kernel": 3, "two/kernel": 1}
    assert jm.nbytes(small) < 0.55 * jm.nbytes(pairs)
    want, got = (jm.decode(attach(PARAMS, p)) for p in (pairs, small))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want)


def test_what_is_left_is_no_larger_than_pairs_of_one_rank():
    params = {"small": {"kernel": jnp.ones((8, 8))}, "large": {"kernel": jnp.ones((32, 64))}}
    pairs = triples(KEY, params, 6)
    steep = {path: jax.tree.map(jnp.ones_like, pair) for path, pair in pairs.items()}
    steep["large/kernel"] = jax.tree.map(lambda x: 2 * x, steep["large/kernel"])
    tx = adaptive_rank(optax.sgd(0.01), 4, begin=0, end=2, every=1)
    state = tx.init(pairs)
    for _ in range(4):
        updates, state = tx.update(steep, state, pairs)
        pairs = optax.apply_updates(pairs, updates)
    small = shrink(pairs)
    assert small["large/kernel"]["u"].shape[-1] == 4
    assert jm.nbytes(small) <= jm.nbytes(adapters(KEY, params, 4))


def test_triples_begin_as_pairs_do():
    loss = lambda p: sum(
        jnp.sin(y + 1).sum() for y in outputs(jm.decode(attach(PARAMS, p))).values()
    )
    ours, plain = (jax.grad(loss)(make(KEY, PARAMS, 4)) for make in (triples, adapters))
    for path in plain:
        assert jnp.abs(plain[path]["u"]).max() > 0
        np.testing.assert_array_equal(ours[path]["u"], plain[path]["u"])


def test_a_weight_without_triples_has_no_pair(trained):
    pairs = trained[0]
    gone = pairs | {"two/kernel": pairs["two/kernel"] | {"e": jnp.zeros((2, 4))}}
    assert list(shrink(gone)) == ["one/kernel"]


def test_what_is_no_triple_is_refused():
    pairs = adapters(KEY, PARAMS, 4)
    tx = adaptive_rank(optax.sgd(0.1), 2, begin=0, end=1)
    with pytest.raises(ValueError, match="trains triples"):
        tx.init(pairs)
    with pytest.raises(ValueError, match="shrink takes triples"):
        shrink(pairs)
    with pytest.raises(ValueError, match="average rank is 1, expected more than the 2"):
        tx.init(triples(KEY, PARAMS, 1))
    with pytest.raises(ValueError, match="begin before end"):
        adaptive_rank(optax.sgd(0.1), 2, begin=1, end=1)
