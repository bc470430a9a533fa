"""Model.save, and what load makes of it."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import random_tensors, write_single

from jaxmem.codecs import Int
from jaxmem.core.byte_counts import nbytes
from jaxmem.core.leaf import decode
from jaxmem.models import load


@pytest.fixture(scope="module")
def tensors():
    return random_tensors()


def test_a_saved_model_comes_back_whole(tensors, tmp_path):
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    model = load(write_single(tmp_path, tensors))
    model.save(tmp_path / "out")
    model.save(tmp_path / "out")  # replaces its own
    again = load(tmp_path / "out")
    assert again.chat_template == model.chat_template == "{{ messages }}"
    assert again.config == model.config and str(model.source) in again.source
    assert sorted(p.name for p in tmp_path.iterdir() if "out" in p.name) == ["out"]
    chex.assert_trees_all_equal(again.params, model.params, strict=True)


def test_params_that_are_first_read_inside_a_jit_are_arrays(tensors, tmp_path):
    model = load(write_single(tmp_path, tensors))
    total = jax.jit(lambda x: x + sum(w.sum() for w in jax.tree.leaves(model.params)))(0.0)
    outside = sum(w.sum() for w in jax.tree.leaves(model.params))
    np.testing.assert_allclose(total, outside, rtol=1e-4)


@pytest.mark.slow
def test_an_encoded_model_is_saved_loaded_and_run(tensors, tmp_path):
    model, ids = load(write_single(tmp_path, tensors)), jnp.arange(6, dtype=jnp.int32)[None]
    down = lambda path, x: Int(8).encode(x) if "down" in jax.tree_util.keystr(path) else x
    encoded = jax.tree.map_with_path(down, model.params)
    model.save(tmp_path / "out", encoded)
    again = load(tmp_path / "out")
    assert nbytes(again.params) == nbytes(encoded) < nbytes(model.params)
    expected = jax.jit(model.apply)(decode(encoded), ids)
    found = jax.jit(again.apply)(again.params, ids)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_saving_over_something_else_is_refused(tensors, tmp_path):
    model = load(write_single(tmp_path, tensors))
    with pytest.raises(ValueError, match="was not written by jaxmem"):
        model.save(tmp_path)
    assert load(tmp_path).config == model.config


@pytest.mark.parametrize(
    "record", ["{}", '{"format": 1}', '{"format": 1, "source": "", "config": {"family": "os"}}']
)
def test_a_record_that_is_not_ours_is_one_clear_error(record, tmp_path):
    (tmp_path / "jaxmem.json").write_text(record)
    with pytest.raises(ValueError, match=r"jaxmem\.json"):
        load(tmp_path)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"layers": 2**31}, "layers is 2147483648"),
        ({"width": "64"}, "width is '64', expected int"),
        ({"eps": float("nan")}, "eps is nan, expected finite"),
        ({"eps": -1}, "eps is -1, expected at least 0"),
        ({"twist": 1}, "twist"),
        ({"sinks": True}, "attn/sinks"),
        ({"ffn": 95}, r"expects layers/mlp/gate/kernel of shape \(2, 64, 95\)"),
    ],
)
def test_a_record_that_does_not_fit_its_params_is_one_clear_error(
    change, message, tensors, tmp_path
):
    load(write_single(tmp_path, tensors)).save(tmp_path / "out")
    record = json.loads((tmp_path / "out" / "jaxmem.json").read_text())
    record["config"] |= change
    (tmp_path / "out" / "jaxmem.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=rf"jaxmem\.json.*{message}"):
        load(tmp_path / "out")


def test_the_families_keep_the_names_they_had_in_models():
    from jaxmem.models import bert, gpt2, llama, llama_nnx

    assert llama.Config.family == "llama" and {bert.Config.family, gpt2.Config.family} == {
        "bert",
        "gpt2",
    }
    assert llama_nnx.Config is llama.Config
