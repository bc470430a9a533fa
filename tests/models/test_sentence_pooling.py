"""Vectors of texts, as the files of sentence-transformers say, by the formula of each mode."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmem.formats.safetensors import write_safetensors
from jaxmem.models.sentence_pooling import (
    MODES,
    Pooling,
    pooling_of,
    read_pooling,
    sentence_files,
)

HIDDEN = np.random.default_rng(0).standard_normal((2, 4, 6)).astype(np.float32)
MASK = np.array([[1, 1, 1, 0], [1, 1, 0, 0]], bool)
FORMULAS = {
    "mean": lambda real: real.mean(0),
    "first": lambda real: real[0],
    "max": lambda real: real.max(0),
    "mean_sqrt_len": lambda real: real.sum(0) / np.sqrt(len(real)),
}


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_is_its_formula_over_the_real_tokens(mode):
    expected = np.stack([FORMULAS[mode](x[m]) for x, m in zip(HIDDEN, MASK)])
    vectors = Pooling(mode, normalized=False)(jnp.asarray(HIDDEN), jnp.asarray(MASK))
    np.testing.assert_allclose(vectors, expected, rtol=1e-5, atol=1e-6)
    unit = Pooling(mode)(jnp.asarray(HIDDEN), jnp.asarray(MASK))
    lengths = np.linalg.norm(expected, axis=-1, keepdims=True)
    np.testing.assert_allclose(unit, expected / lengths, rtol=1e-5, atol=1e-6)


def written(folder, kinds=("Transformer", "Pooling", "Normalize"), lower=False, **modes):
    paths = {"Transformer": "", "Pooling": "1_Pooling"}
    modules = [
        {"idx": i, "name": str(i), "path": paths.get(kind, kind), "type": f"a.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    sizes = {"max_seq_length": 128, "do_lower_case": lower}
    (folder / "sentence_bert_config.json").write_text(json.dumps(sizes))
    (folder / "1_Pooling").mkdir()
    modes = {f"pooling_mode_{name}": value for name, value in modes.items()}
    (folder / "1_Pooling/config.json").write_text(json.dumps(modes))
    return folder


def test_the_files_of_a_folder_say_the_pooling(tmp_path):
    folder = written(tmp_path, cls_token=False, mean_tokens=True, max_tokens=False)
    assert read_pooling(folder) == Pooling("mean", normalized=True, length=128)


def dense_folder(folder, activation="activation.Tanh", **changes):
    """A folder of sentence-transformers with a dense layer of 6 to 3 numbers."""
    folder = written(folder, ("Transformer", "Pooling", "Dense", "Normalize"), mean_tokens=True)
    (folder / "Dense").mkdir()
    said = dict(in_features=6, out_features=3, bias=True)
    said["activation_function"] = f"torch.nn.modules.{activation}"
    (folder / "Dense/config.json").write_text(json.dumps(said | changes))
    weight, bias = HIDDEN[0, :3], HIDDEN[1, 0, :3]
    tensors = {"linear.weight": weight, "linear.bias": bias}
    shapes = {name: (x.shape, x.dtype) for name, x in tensors.items()}
    write_safetensors(folder / "Dense/model.safetensors", shapes, tensors.values())
    return folder, lambda v: v @ weight.T + bias


def test_a_dense_layer_changes_the_vector_before_it_is_normalized(tmp_path):
    folder, linear = dense_folder(tmp_path)
    vectors = np.tanh(linear(np.stack([x[m].mean(0) for x, m in zip(HIDDEN, MASK)])))
    expected = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    got = read_pooling(folder)(jnp.asarray(HIDDEN), jnp.asarray(MASK))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"names Dense, .* give pooling=jm\.models\.read_pooling"):
        pooling_of(sentence_files(folder), folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(activation="activation.Mish"), "activation_function is .*Mish', expected one that"),
        (dict(out_features=4), r"holds tensors of .*\(3, 6\).*, expected .*\(4, 6\)"),
        (dict(bias=False), "holds tensors of .*linear.bias.*, expected"),
        (dict(dropout=0.1), "dropout is 0.1, a field that is not known"),
    ],
)
def test_a_dense_layer_that_is_not_computed_is_refused(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_pooling(dense_folder(tmp_path, **changes)[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(mean_tokens=True, max_tokens=True), r"switches on \['mean', 'max'\], expected one"),
        (dict(mean_tokens=False), r"switches on \[\], expected one of mean, first"),
        (dict(lasttoken=True), "pooling_mode_lasttoken is True, a field that is not known here"),
        (
            dict(kinds=("Transformer", "Pooling", "CNN")),
            "names Transformer, Pooling, CNN, exp",
        ),
        (dict(kinds=("Pooling", "Transformer")), "names Pooling, Transformer, expected"),
        (dict(kinds=("Transformer", "Pooling", "Normalize", "Dense")), "Dense, Normalize, each at"),
        (dict(mean_tokens=True, lower=True), "do_lower_case is True, expected False"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_pooling(written(tmp_path, **options))
    with pytest.raises(ValueError, match=r"modules\.json is missing"):
        read_pooling(tmp_path / "1_Pooling")
