"""Ints, strings, functions and random keys in a tree, as in a TrainState, stay as they are."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import PartitionSpec as P

import jaxmem as jm

OTHERS = {
    "act": jax.nn.relu,
    "ids": jnp.arange(3),
    "key": jax.random.key(0),
    "name": "relu",
    "nothing": None,
    "scale": 2.0,
    "step": 3,
}
TREE = OTHERS | {"w": jnp.ones((32, 8))}
X = jnp.ones((2, 32))
PLAN = {"w": jm.Int(8)}


def model(params, x):
    assert params["name"] == "relu" and params["step"] == 3  # in Python, while it is traced
    noise = jax.random.uniform(params["key"])
    return params["act"](x @ params["w"]) * params["scale"] + noise


def test_ints_strings_and_functions_take_no_bytes_and_a_key_those_of_its_data():
    assert jm.nbytes(TREE) == 32 * 8 * 4 + 3 * 4 + 8
    assert jm.nbytes(jax.eval_shape(lambda: jax.random.key(0))) == 8
    assert jm.nbytes([np.array(["a"]), np.array([b"b"]), np.array(["2026"], "datetime64[Y]")]) == 0


def test_encode_and_decode_leave_them_as_they_are():
    for tree in (jm.encode(TREE, PLAN), jm.decode(jm.encode(TREE, PLAN))):
        assert all(tree[name] is OTHERS[name] for name in OTHERS)
    first, second = jm.split(TREE, lambda path: path == "w")
    assert jm.merge(first, second)["step"] == 3 and second["w"] is None


@pytest.mark.parametrize("name, kind", [("step", "int"), ("act", "custom_jvp"), ("ids", "int32")])
def test_a_plan_that_would_encode_one_is_refused_by_path(name, kind):
    with pytest.raises(TypeError, match=f"^{name}: the weight is of .*{kind}, expected floats"):
        jm.encode(TREE, {name: jm.Int(8)})


def test_uses_and_lift_hand_them_to_the_model():
    uses = jm.uses(model, TREE, X)
    assert uses["w"][0].axes == (-2,) and set(uses) <= {"w", "ids"}
    out = jax.eval_shape(jm.lift(lambda x: model(jm.encode(TREE, {}), x)), X)
    assert out.shape == (2, 8)
    abstract = TREE | {"key": jax.eval_shape(lambda: jax.random.key(0))}
    assert set(jm.uses(model, abstract, X)) == {"w"}


def test_a_budget_and_its_candidates_pass_over_them():
    assert list(jm.techniques(TREE, ["int"])) == ["w"]
    assert list(jm.budget(TREE, nbytes=600, candidates=[jm.Int(8), jm.Int(4)])) == ["w"]
    assert list(jm.uniform(TREE, 0.5, where="w|step")) == ["w"]


def test_a_report_and_a_placement_have_a_line_for_each():
    rows = {row.path: row for row in jm.report(TREE, jm.encode(TREE, PLAN)).rows}
    assert rows["key"].form == "key<fry>" and rows["key"].encoded == 8
    assert (rows["step"].form, rows["step"].dense, rows["step"].error) == ("int", 0, 0.0)
    mesh = jm.mesh(fsdp=8)
    places = {row.path: row for row in jm.placement(TREE, mesh, {"w": P("fsdp")}).rows}
    assert (places["w"].per_device, places["act"].per_device) == (128, 0)


def test_a_sharded_tree_keeps_them():
    mesh = jm.mesh(fsdp=8)
    where = jm.shardings(TREE, mesh, {"w": P("fsdp")})
    there = jm.shard(TREE, where)
    assert there["act"] is TREE["act"] and there["step"] == 3
    assert there["w"].sharding.spec == P("fsdp") and jm.nbytes(there["key"]) == 8


def test_moments_and_gradients_are_of_the_arrays():
    moments = jm.stats(model, TREE, [(X,)], moments="diag")
    chex.assert_trees_all_close(moments["w"].second, jnp.ones(32))
    loss = lambda params, x: model(params, x).sum()
    assert list(jm.gradients(loss, TREE, [(X,)])) == ["w"]


def test_a_train_state_and_a_state_of_nnx_encode():
    params = {"kernel": jnp.ones((32, 8)), "bias": jnp.ones(8)}
    state = TrainState.create(apply_fn=nn.Dense(8).apply, params=params, tx=optax.sgd(0.1))
    encoded = jm.encode(state, {"kernel": jm.Int(8)})
    assert jm.is_encoded(encoded.params["kernel"]) and encoded.step == 0
    module = nnx.Dropout(0.1, rngs=nnx.Rngs(0))
    assert jm.nbytes(nnx.state(module)) == 8 + 4
    assert jm.paths(jm.encode(nnx.state(module), {})) == ["rngs/count", "rngs/key"]
