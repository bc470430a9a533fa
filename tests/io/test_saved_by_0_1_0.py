"""What version 0.1.0 wrote still loads, and means the same (see reference/make_saved.py)."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxmem as jm
from jaxmem.evaluation.confidence import Estimate

REFERENCE = pathlib.Path(__file__).parents[1] / "reference"
FILES = ["saved_0_1_0", "saved_0_1_0_compressed"]
EXPECTED = dict(np.load(REFERENCE / "saved_0_1_0.npz"))
TEXTS = json.loads((REFERENCE / "texts_0_1_0.json").read_text())
ENTRIES = sorted({name.split("/")[1] for name in EXPECTED if name.startswith("saved_0_1_0/")})
SMALL = sorted({name.split("/")[1] for name in EXPECTED if name.startswith(FILES[1])})


@functools.cache
def saved(file: str) -> dict:
    return jm.load(REFERENCE / f"{file}.jm")


def assert_expected(name: str, leaf) -> None:
    """The leaf holds the arrays of the .npz file bit for bit, and decodes to them.

    A compiler may round a multiplication and an addition once instead of twice. Hence the
    tolerance of decoded values: some roundings of float32.
    """
    arrays, decoded = jax.tree.leaves(leaf), jax.tree.leaves(jm.decode(leaf))
    assert len(arrays) + len(decoded) == sum(key.startswith(f"{name}/") for key in EXPECTED)
    for i, array in enumerate(arrays):
        np.testing.assert_array_equal(np.asarray(array).astype(float), EXPECTED[f"{name}/{i}"])
    for i, array in enumerate(decoded):
        expected = EXPECTED[f"{name}/decoded/{i}"]
        np.testing.assert_allclose(np.asarray(array).astype(float), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("file", "entry"), [*((FILES[0], e) for e in ENTRIES), *((FILES[1], e) for e in SMALL)]
)
def test_a_saved_tree_holds_and_decodes_to_what_it_did(file, entry):
    assert_expected(f"{file}/{entry}", saved(file)["leaves"][entry])


def test_every_leaf_is_of_the_class_it_was():
    leaves = saved(FILES[0])["leaves"]
    assert len(leaves) == len(ENTRIES) > 40
    assert isinstance(leaves["int4_group_zero"], jm.Encoded)
    kinds = {type(leaf).__name__ for leaf in leaves.values() if isinstance(leaf, jm.Encoded)}
    assert len(kinds) > 20


def test_plain_values_return():
    plain = saved(FILES[0])["plain"]
    assert plain["codec"] == jm.DoubleQuant(
        jm.Codebook("nf4", group=8), jm.Int(8, group=16, symmetric=False)
    )
    assert (plain["step"], plain["rate"], plain["name"], plain["none"]) == (3, 0.1, "tiny", None)
    assert plain["scalar"] == np.float32(2.5) and plain["dtype"] == ml_dtypes.bfloat16


def test_a_saved_model_loads_and_gives_the_logits_it_gave():
    model = jm.models.load(REFERENCE / "model_0_1_0")
    assert (model.config.layers, model.config.width) == (2, 32)
    assert model.tokenizer.encode("one three two").ids == [1, 3, 2]
    params = {key: EXPECTED[key] for key in EXPECTED if key.startswith("model/")}
    logits = params.pop("model/logits")
    arrays = jax.tree.leaves(model.params)
    assert len(arrays) == len(params)
    for i, array in enumerate(arrays):
        np.testing.assert_array_equal(np.asarray(array).astype(float), params[f"model/{i}"])
    ids = jnp.arange(6, dtype=jnp.int32)[None]
    np.testing.assert_allclose(
        jax.jit(model.apply)(model.params, ids), logits, rtol=1e-5, atol=1e-5
    )


def test_a_plan_is_read_and_written_as_it_was():
    plan = jm.Plan.from_json(TEXTS["plan"])
    assert plan.to_json() == TEXTS["plan"]
    assert plan["layers[0:2]/up"] == jm.Int(2) and plan["nothing"] is None
    assert plan["int4_group_zero"] == jm.Int(4, group=10, symmetric=False)
    assert plan["shared_and_more"] == jm.Sum((jm.Shared(2), jm.LowRank(1)))


def test_a_recipe_is_read_as_it_was():
    recipe = jm.Recipe.from_json(TEXTS["recipe"])
    again = jm.Recipe(
        "llama-8b",
        "tpu v5e:2x4",
        "lora",
        16,
        4096,
        encoding=jm.Codebook("nf4", group=64),
        state="int8",
        remat=jm.Remat("dots"),
        micro=2,
        chunk=256,
        rank=8,
    )
    assert recipe == again


def test_an_evaluation_is_read_as_it_was():
    assert jm.Evaluation.from_json(TEXTS["evaluation"]) == jm.Evaluation(
        tokens=2046,
        resident=1000,
        peak=2000,
        perplexity=Estimate(20.1, 17.5, 23.1),
        kl=Estimate(0.15),
        kl_by_window=(0.1, 0.2),
    )
