"""A weight has the same path in linen, NNX and plain trees."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxmem as jm
from jaxmem.core.lazy import Lazy
from jaxmem.core.paths import match

PLAIN = {"up": {"bias": jnp.zeros(3), "kernel": jnp.ones((2, 3))}}


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="up")(x)


class Twin(nnx.Module):
    def __init__(self):
        self.up = nnx.Linear(2, 3, rngs=nnx.Rngs(0))


TREES = {
    "plain": lambda: PLAIN,
    "linen": lambda: Linen().init(jax.random.key(0), jnp.ones((1, 2))),
    "state": lambda: nnx.state(Twin()),
    "pure": lambda: nnx.to_pure_dict(nnx.state(Twin())),
    "module": Twin,
}


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_a_path_reads_the_same_wherever_the_weight_stands(tree):
    assert set(jm.paths(tree())) == {"up/bias", "up/kernel"}


def test_lists_count_their_layers():
    assert jm.paths({"layers": [{"w": 1.0}, {"w": 2.0}]}) == ["layers/0/w", "layers/1/w"]


def test_an_encoded_leaf_and_an_unread_one_have_one_path():
    lazy = Lazy((2, 2), np.dtype("float32"), lambda i: np.ones((2, 2)))
    tree = {"a": jm.Int(4).encode(jnp.ones((2, 2))), "b": lazy, "c": 1.0}
    assert jm.paths(tree) == ["a", "b", "c"]


def test_encoding_does_not_change_the_paths():
    params = TREES["linen"]()
    enc = jm.encode(params, jm.choose(params, {".*kernel": jm.Int(8)}))
    assert jm.paths(enc) == jm.paths(params)


def test_the_first_rule_that_matches_the_whole_path_wins():
    rules = {"up/bias": 1, "up/.*": 2, ".*": 3}
    assert match(["up/kernel", "up/bias", "down"], rules) == {
        "up/kernel": 2,
        "up/bias": 1,
        "down": 3,
    }
    assert match(["up/kernel"], {"up/kernel": 1}) == {"up/kernel": 1}


def test_what_no_rule_matches_is_left_out():
    assert jm.choose(PLAIN, {".*kernel": jm.Int(4)}) == {"up/kernel": jm.Int(4)}


@pytest.mark.parametrize("pattern", [".*kernal", "kernel", "up"])
def test_a_rule_that_matches_nothing_says_so(pattern):
    with pytest.raises(ValueError, match=f"'{pattern}' matches no leaf"):
        jm.choose(PLAIN, {pattern: jm.Int(4)})


@pytest.mark.parametrize("keep", [lambda p: "kernel" in p, lambda p: True, lambda p: False])
@pytest.mark.parametrize("name", ["plain", "linen", "state"])
def test_merge_undoes_split(name, keep):
    params = TREES[name]()
    enc = jm.encode(params, {"up/kernel": jm.Int(8)})
    first, second = jm.split(enc, keep)
    assert set(jm.paths(first)) == {p for p in jm.paths(enc) if keep(p)}
    again = jm.merge(first, second)
    chex.assert_trees_all_equal(again, enc, strict=True)
