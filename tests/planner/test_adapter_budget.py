"""Bits of the base and ranks of the pairs share one number of bytes."""

import itertools

import jax
import jax.numpy as jnp
import pytest

import jaxmem as jm
from jaxmem.adapters import adapters, attach, truncate

KEYS = jax.random.split(jax.random.key(0), 6)
PARAMS = {name: jax.random.normal(key, (2, 32, 32)) for name, key in zip("ab", KEYS)}
PARAMS |= {"norm": jnp.ones(32)}
X = jax.random.normal(KEYS[2], (64, 32)) * jnp.linspace(0.1, 2, 32)[None]
CODECS, RANKS = [jm.Int(2, group=16), jm.Int(4, group=16)], [0, 2, 6]


def fn(params, x):
    step = lambda x, w: (x, x @ w)
    return sum(jax.lax.scan(step, x * params["norm"][None], params[n])[1] for n in "ab")


@pytest.fixture(scope="module")
def probe():
    """(pairs of rank 6 of which a's are large, stats)."""
    pairs = adapters(KEYS[3], PARAMS, 6, "a|b")
    size = {"a": 0.4, "b": 0.02}
    drawn = lambda x: jax.random.normal(KEYS[4], x["u"].shape)
    pairs = {p: x | {"u": size[p] * drawn(x)} for p, x in pairs.items()}
    return pairs, jm.stats(fn, PARAMS, [(X,)])


def made(plan, ranks, pairs, stats):
    """(bytes of base and pairs, error of each weight's outputs)."""
    base, small = jm.encode(PARAMS, plan), truncate(pairs, ranks, stats=stats)
    found, wanted = (jm.decode(attach(b, p)) for b, p in ((base, small), (PARAMS, pairs)))
    errors = jax.tree.map(lambda a, b: a - b, found, wanted)
    squares = lambda n: jnp.square(jnp.einsum("tk,lkn->ltn", X, errors[n])).sum()
    return jm.nbytes(base) + jm.nbytes(small), float(sum(map(squares, "ab")))


def test_a_budget_over_bits_and_ranks_is_as_good_as_the_best_fixed_split(probe):
    nbytes = 3200
    plan, ranks = jm.bits_and_ranks(PARAMS, *probe[:1], nbytes, codecs=CODECS, ranks=RANKS,
                                    stats=probe[1])  # fmt: skip
    size, error = made(plan, ranks, *probe)
    assert size <= nbytes
    for codec, rank in itertools.product(CODECS, RANKS):
        same = dict.fromkeys("ab", rank) if rank else {}
        fixed = made({"a": codec, "b": codec}, same, *probe)
        assert fixed[0] > nbytes or error <= fixed[1] * 1.001


def test_what_does_not_fit_is_refused(probe):
    choose = lambda nbytes, params=PARAMS, **more: jm.bits_and_ranks(
        params, probe[0], nbytes, **({"codecs": CODECS, "ranks": RANKS, "stats": probe[1]} | more)
    )
    with pytest.raises(ValueError, match="nothing fits 100 bytes: the smallest choice takes 1,"):
        choose(100)
    with pytest.raises(ValueError, match="the rank of a's pair is 6, not 8"):
        choose(10_000, ranks=[8])
    with pytest.raises(ValueError, match="a is encoded, expected a dense weight"):
        choose(10_000, jm.encode(PARAMS, {"a": jm.Int(4)}))
    with pytest.raises(ValueError, match="a is without stats"):
        choose(10_000, stats={})


def test_ranks_of_no_pair_are_refused(probe):
    with pytest.raises(ValueError, match="ranks name 'c', which is no pair"):
        truncate(probe[0], {"c": 1})
    with pytest.raises(ValueError, match="the rank of a is 7, expected 1 to 6"):
        truncate(probe[0], {"a": 7})
    with pytest.raises(ValueError, match="stats have no a"):
        truncate(probe[0], {"a": 2}, stats={})
