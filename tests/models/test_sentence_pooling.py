"""Vectors of texts, as the files of sentence-transformers say, by the formula of each mode."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmem.models.sentence_pooling import MODES, Pooling, read_pooling

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
        (dict(mean_tokens=True, lower=True), "do_lower_case is True, expected False"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_pooling(written(tmp_path, **options))
    with pytest.raises(ValueError, match=r"modules\.json is missing"):
        read_pooling(tmp_path / "1_Pooling")
