"""Parameters, states and optimizers of Flax and optax are saved and loaded."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from checkpoint_trees import CLASSES, rounded, same
from flax import nnx
from flax.training.train_state import TrainState

import jaxmem as jm
from jaxmem.io.checkpoint import load, save


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tree.jm"


def test_a_linen_model_returns(path):
    params = nn.Dense(3).init(jax.random.key(0), jnp.ones((1, 2)))
    save(path, params)
    same(load(path), params)


def test_an_nnx_state_returns_with_encoded_weights(path):
    linear = lambda seed: nnx.Linear(2, 2, rngs=nnx.Rngs(seed))
    state = nnx.state(nnx.Sequential(linear(0), linear(1)))
    state["layers"][0]["kernel"] = nnx.Param(rounded())
    save(path, state)
    same(load(path, classes=CLASSES), state)


NNX_KINDS = [c for c in vars(nnx).values() if isinstance(c, type) and issubclass(c, nnx.Variable)]


class Frozen(nnx.Variable):
    """A kind of variable that a user made."""


@pytest.mark.parametrize("kind", [*NNX_KINDS, Frozen])
def test_every_kind_of_nnx_variable_returns(path, kind):
    state = nnx.State({"w": kind(jnp.ones(2)), "deep": {0: kind({"a": jnp.zeros(1)}, tag="x")}})
    save(path, state)
    again = load(path, classes=[Frozen])
    same(again, state)
    assert type(again["w"]) is kind and again["deep"][0].get_metadata()["tag"] == "x"


def test_the_state_of_an_nnx_optimizer_returns(path):
    model = nnx.Sequential(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(1)))
    for tree in (
        nnx.state(nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)),
        nnx.state(model),
    ):
        save(path, tree)
        same(load(path), tree)


def test_a_train_state_returns_with_the_functions_that_the_caller_gives_back(path):
    model, tx, x = nn.Dense(3), optax.adam(1e-3), jnp.ones((1, 2))
    params = model.init(jax.random.key(0), x)["params"]
    state = TrainState.create(apply_fn=model.apply, params=params, tx=tx)
    save(path, state.replace(params=jm.encode(params, {"kernel": jm.Int(8)})))
    functions = {"apply_fn": model.apply, "tx": tx}
    again = load(path, functions=functions)
    assert jm.is_encoded(again.params["kernel"]) and again.tx is tx and again.step == 0
    assert jm.lift(again.apply_fn)({"params": again.params}, x).shape == (1, 3)
    with pytest.raises(ValueError, match=r"function .*Module.apply at 'apply_fn'.*functions={'app"):
        load(path)
    with pytest.raises(ValueError, match="nothing at 'opt', a path of functions"):
        load(path, functions=functions | {"opt": tx})


def test_the_state_of_an_optimizer_returns(path):
    state = optax.adamw(1e-3).init({"w": jnp.ones((4, 8))})
    save(path, state)
    same(load(path), state)
