"""Recipes that compute layers in tiles of tokens, or train weights of 3 bytes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmem as jm
from jaxmem.architectures import llama
from jaxmem.compiler.devices import Device
from jaxmem.planner.estimates import arithmetic
from jaxmem.planner.recipe_lists import recipe_lists

SIZES = dict(vocab=64, width=16, ffn=512, layers=2, heads=2, kv_heads=1, head_dim=8)
CONFIG = llama.Config(**SIZES)
MODEL = jm.training.fresh(jm.models.Model(CONFIG, llama.module(CONFIG), None, "tiny"))
PLAIN = jm.Recipe("tiny", "cpu", "train", 4, 128, chunk=128)
HIDDEN = 4 * 128 * 512 * 2  # bytes of an array of hidden numbers in bfloat16


def trained(recipe, steps=1):
    """(the loss of each step, the state after them, bytes of temporary memory)."""
    built = jm.build(recipe, model=MODEL)
    compiled = built.step.lower(*built.arguments).compile()
    ids = np.random.default_rng(0).integers(0, 64, (recipe.batch, recipe.seq)).astype(np.int32)
    state, losses = built.init(MODEL.params)[0], []
    for _ in range(steps):
        state, loss = compiled(state, ids)
        losses.append(float(loss))
    with jax.numpy_dtype_promotion("standard"):
        after = float(built.loss(state["params"], ids))
    return [*losses, after], state, compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("release", [False, True])
def test_a_step_in_tiles_is_that_of_all_tokens_in_less_memory(release):
    plain = dataclasses.replace(PLAIN, release=release)
    want, _, whole = trained(plain)
    got, _, tiles = trained(dataclasses.replace(plain, tile=16))
    assert got == pytest.approx(want, rel=2e-3) and got[0] != got[1]
    assert tiles < whole - 2 * HIDDEN


@pytest.mark.parametrize("release", [False, True])
def test_split_weights_are_trained_in_three_bytes(release):
    recipe = dataclasses.replace(PLAIN, weights="split", state="int8", release=release)
    losses, state, _ = trained(recipe, steps=3)
    assert losses[-1] < losses[0]
    count = sum(w.size for w in jax.tree.leaves(MODEL.params))
    assert jm.nbytes(state["params"]) == 3 * count
    rest = state["params"]["layers"]["mlp"]["up"]["kernel"].codes
    assert (rest != 0).any() and rest.dtype == jnp.int8


def test_a_plan_has_tiles_and_split_weights_among_its_choices():
    first = dataclasses.replace(PLAIN, seq=1024, chunk=1024, remat=jm.Remat("none"))
    kinds = list(recipe_lists(first, [None], ["int8"], [None], weights=["bfloat16", "split"]))
    forms = {(r.release, r.tile, r.weights) for kind in kinds for r in kind}
    assert forms >= {(True, 512, "bfloat16"), (True, None, "split"), (False, None, "split")}
    recipe = next(r for kind in kinds for r in kind if r.tile)
    build = lambda recipe: jm.build(recipe, model=MODEL)
    cost = lambda recipe: arithmetic(recipe, CONFIG, build, Device(2**30, 1e12, 1e11, 1e10))
    assert cost(recipe)[1] > cost(dataclasses.replace(recipe, tile=None))[1]
    split = dataclasses.replace(recipe, weights="split", encoding=None)
    assert cost(split)[0] > cost(dataclasses.replace(split, weights="bfloat16"))[0]


def test_a_recipe_with_tiles_and_split_weights_is_json():
    recipe = dataclasses.replace(PLAIN, tile=16, weights="split")
    assert jm.Recipe.from_json(recipe.to_json()) == recipe
    assert "split weights" in recipe.summary and "tiles of 16 tokens" in recipe.summary
    assert not {"tile", "weights"} & set(jm.Recipe.from_json(PLAIN.to_json()).to_json().split('"'))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tile": 0}, "tile is 0"),
        ({"tile": 16, "task": "lora"}, "tile is 16 for task 'lora'"),
        ({"tile": 16, "remat": jm.Remat("dots_no_batch")}, "remat 'dots_no_batch'"),
        ({"weights": "float32"}, "weights is 'float32', expected one of bfloat16, split"),
        ({"weights": "split", "task": "lora"}, "weights is 'split' for task 'lora'"),
        ({"weights": "split", "mesh": {"fsdp": 2}}, "on one device"),
        ({"weights": "split", "offload": True}, "no offload"),
    ],
    ids=range(7),
)
def test_forms_that_nothing_computes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PLAIN, **changes)
