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


W = jnp.ones((8, 8))
SAME_WORDS = {
    "a slash in a key": ({"a": {"b": W}, "a/b": W}, ["a/b", "a~1b"]),
    "a leaf beside the collection": ({"params": {"w": W}, "w": W}, ["params/w", "w"]),
    "no collision": ({"mlp/~/linear": {"w": W}}, ["mlp/~/linear/w"]),
    "leaves named value": ({"m": {"k": W, "value": {"value": W}}}, ["m/k", "m/value/value"]),
    "a leaf named params": ({"b": W, "params": W}, ["b", "params"]),
}


@pytest.mark.parametrize("tree, names", SAME_WORDS.values(), ids=SAME_WORDS)
def test_no_two_leaves_have_one_path_and_none_loses_its_name(tree, names):
    assert jm.paths(tree) == names
    encoded = jm.encode(tree, jm.choose(tree, {name: jm.Int(8) for name in names}))
    assert all(map(jm.is_encoded, jax.tree.leaves(encoded, is_leaf=jm.is_encoded)))


def test_leaves_whose_keys_read_the_same_are_refused_with_both_named():
    tree = {"a": {"b": W}, "a/b": W, "a~1b": W}
    with pytest.raises(ValueError, match=r"'a~1b'.*'a/b'.*'a~1b'"):
        jm.paths(tree)


def test_only_a_variable_of_nnx_loses_the_name_value():
    class Attention(nnx.Module):
        def __init__(self):
            self.value = nnx.Linear(2, 3, use_bias=False, rngs=nnx.Rngs(0))
            self.state = nnx.Variable({"value": jnp.ones(2)})

    module = Attention()
    assert jm.paths(nnx.state(module)) == ["state/value", "value/kernel"]
    assert set(jm.paths(module)) == {"state/value", "value/kernel"}


@pytest.mark.parametrize("name", ["w[0]", "w.1", "w(2)", "w+", "(w", "w[0:2]", "a[1]/w[0]"])
def test_a_name_with_letters_of_a_regex_names_its_leaf(name):
    params = {name: W, "w0": W, "w1": W, "wx1": W, "ww": W, "w2": W}
    plan = jm.choose(params, {name: jm.Int(8)})
    assert list(plan) == [name]
    assert jm.is_encoded(jm.encode(params, plan)[name])


def test_layers_of_a_stack_whose_name_has_brackets_can_be_told_apart():
    params = {"w[0]": jnp.ones((4, 8, 8))}
    plan = jm.choose(params, {"w[0]": jm.Int(8), "w[0][1:3]": jm.Int(4)})
    assert jm.encode(params, plan)["w[0]"].ends == (1, 3, 4)


def test_a_rule_that_is_no_regex_or_no_string_is_refused():
    with pytest.raises(ValueError, match=r"rule '\*kernel' is no leaf's path and no regex"):
        jm.choose(PLAIN, {"*kernel": jm.Int(4)})
    with pytest.raises(TypeError, match="a rule is 3, expected a regex"):
        jm.choose(PLAIN, {3: jm.Int(4)})


def test_a_plan_of_strings_is_refused_where_it_is_chosen():
    with pytest.raises(TypeError, match="up/kernel: 'int4' is no codec, expected one such as"):
        jm.choose(PLAIN, {".*kernel": "int4"})


def test_a_budget_over_names_that_could_be_one_keeps_to_its_limit():
    tree = {"a": {"b": jnp.ones((64, 64))}, "a/b": jnp.ones((64, 64))}
    plan = jm.budget(tree, nbytes=10_000, candidates=[jm.Int(8), jm.Int(4)])
    assert jm.nbytes(jm.encode(tree, plan)) <= 10_000
