"""A fit in which int8 inputs meet the integers of the weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import CONTEXT, VOCAB, random_tensors, write_single

import jaxmem as jm
from jaxmem.codecs.dynamic_quantization import DynamicArray
from jaxmem.core.paths import paths
from jaxmem.models import load

PARAMS = {"w": jax.random.normal(jax.random.key(0), (64, 64))}
X = jax.random.normal(jax.random.key(1), (40, 64))
IDS = np.random.default_rng(0).integers(0, VOCAB, 6 * CONTEXT)


def apply(params, x):
    return x @ params["w"]


@pytest.mark.parametrize("batches", [None, [(X[:8],)]], ids=["without data", "with data"])
def test_the_inputs_of_a_function_are_rounded(batches):
    options = jm.FitOptions(activations="int8")
    model = (apply, PARAMS) if batches else (apply, PARAMS, X)
    run, params = jm.fit(model, 4_600, calibrate=batches, options=options).model
    exact = X @ jm.decode(params)["w"]
    assert 0 < jnp.abs(run(params, X) - exact).max() < 0.05 * jnp.abs(exact).max()


@pytest.mark.parametrize("ids", [None, IDS], ids=["without data", "on a text"])
def test_matrices_of_a_model_are_rounded_and_its_tables_are_not(ids, tmp_path):
    write_single(tmp_path, random_tensors())
    options = jm.FitOptions(activations="int8", tune_steps=1)
    fitted = jm.fit(load(tmp_path), 60_000, calibrate=ids, options=options)
    leaves = jax.tree.leaves(fitted.params, is_leaf=jm.is_encoded)
    found = {p for p, x in zip(paths(fitted.params), leaves) if isinstance(x, DynamicArray)}
    assert fitted.nbytes <= 60_000
    assert "layers/mlp/up/kernel" in found and "embed/embedding" not in found
    fitted.save(tmp_path / "fitted")
    row = jnp.asarray(IDS[None, :CONTEXT])
    again, logits = load(tmp_path / "fitted"), fitted.model.apply(fitted.params, row)
    np.testing.assert_array_equal(again.apply(again.params, row), logits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activations": "int4"}, "activations are 'int4', expected int8 or None"),
        ({"target": "gguf"}, "activations in int8: a file for 'gguf' does not say so"),
        ({"among": ("int", "n:m")}, "activations in int8 meet integers alone, and among is"),
    ],
)
def test_options_without_meaning_are_refused(change, message):
    with pytest.raises(ValueError) as error:
        jm.FitOptions(**{"activations": "int8"} | change)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ((apply, PARAMS), "activations in int8: give the inputs"),
        ((lambda p, i: p["w"][i], PARAMS, jnp.zeros(3, jnp.int32)), "no weight in integers"),
    ],
)
def test_a_function_whose_products_are_not_known_is_refused(model, message):
    with pytest.raises(ValueError, match=message):
        jm.fit(model, 4_600, options=jm.FitOptions(activations="int8"))
