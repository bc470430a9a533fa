"""A model of sentence-transformers with a dense layer gives the vectors that its files describe."""

import dataclasses
import json

import cheap_jit
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from exported import folder_of
from safetensors.numpy import load_file, save_file

import jaxmem as jm
from jaxmem.evaluation.embeddings import sentence_embedder
from jaxmem.models.sentence_vectors import vectors_of_texts

IDS = np.random.default_rng(0).integers(3, 30, (2, 6)).astype(np.int32)
MASK = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]], bool)
PLACES = {"Transformer": "", "Pooling": "1_Pooling", "Dense": "a_dense", "Normalize": "3_Normalize"}


def with_dense(folder, kinds=tuple(PLACES), drop=(), **changes):
    """Makes a folder of an encoder one of sentence-transformers; the tensors of its layer."""
    folder_of("encoders/mpnet", folder)
    width = json.loads((folder / "config.json").read_text())["hidden_size"]
    modules = [{"path": PLACES[kind], "type": f"a.{kind}"} for kind in kinds]
    (folder / "modules.json").write_text(json.dumps(modules))
    for place, said in {
        "1_Pooling": {"pooling_mode_mean_tokens": True},
        "a_dense": {"in_features": width, "out_features": 5, "bias": True,
                    "activation_function": "torch.nn.modules.activation.Tanh"} | changes,
    }.items():  # fmt: skip
        (folder / place).mkdir()
        (folder / place / "config.json").write_text(json.dumps(said))
    draw = np.random.default_rng(1).standard_normal
    tensors = {"linear.weight": draw((5, width)), "linear.bias": draw(5)}
    tensors = {name: x.astype(np.float32) for name, x in tensors.items() if name not in drop}
    save_file(tensors, folder / "a_dense/model.safetensors")
    return tensors


def test_the_dense_layer_is_a_weight_that_is_encoded_saved_and_written_again(tmp_path):
    tensors = with_dense(tmp_path)
    model = jm.models.load(tmp_path)
    bare = jm.models.Model(model.config.without_head(), model.params, None, "bare")

    @cheap_jit.jit
    def run(params):
        return model.apply(params, IDS, MASK), bare.apply(params, IDS, MASK)

    got, hidden = run(model.params)
    mean = np.stack([h[m].mean(0) for h, m in zip(np.asarray(hidden), MASK)])
    vectors = np.tanh(mean @ tensors["linear.weight"].T + tensors["linear.bias"])
    expected = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    assert vectors_of_texts(model).__func__ is type(model).apply
    enc = jm.encode(model.params, {"pool/dense/kernel": jm.Int(8)})
    model.save(tmp_path / "saved", enc)
    saved = jm.models.load(tmp_path / "saved")
    assert saved.config == model.config and jm.is_encoded(saved.params["pool"]["dense"]["kernel"])
    assert jm.interop.to_hf(saved, tmp_path / "again").decoded == ("pool/dense/kernel",)
    again = jm.models.load(tmp_path / "again")
    assert again.config == model.config and "2_Dense/config.json" in again.hf_files
    written = load_file(tmp_path / "again/2_Dense/model.safetensors")
    np.testing.assert_allclose(written["linear.weight"], tensors["linear.weight"], atol=0.02)
    assert written.keys() == tensors.keys()
    jm.interop.to_compressed_tensors(tmp_path / "codes", model)
    assert jm.models.load(tmp_path / "codes").config == model.config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(activation_function="a.Mish"), "activation_function is 'a.Mish', expected one that"),
        (dict(out_features=4), r"holds tensors of .*\(5, \d+\).*, expected .*\(4, \d+\)"),
        (dict(in_features=4), "in_features is 4, expected"),
        (dict(bias=False), "holds tensors of .*linear.bias.*, expected"),
        (dict(drop=("linear.bias",)), "holds tensors of .*, expected .*linear.bias"),
        (dict(dropout=0.1), "dropout is 0.1, a field that is not known"),
        (dict(kinds=("Transformer", "Pooling", "Normalize", "Dense")), "Dense, Normalize, each at"),
    ],
)
def test_a_dense_layer_that_is_not_computed_is_named_and_left_out(options, message, tmp_path):
    with_dense(tmp_path, **options)
    with pytest.warns(UserWarning, match=f"{message}.*; the output of the model is hidden states"):
        model = jm.models.load(tmp_path)
    assert model.config.head == ""
    with pytest.raises(ValueError, match="names Dense, whose weights this model does not hold"):
        sentence_embedder(model)
    jm.interop.to_hf(model, tmp_path / "bare")
    assert not (tmp_path / "bare/modules.json").exists()


def test_a_pooling_without_the_model_does_not_leave_the_dense_layer_out(tmp_path):
    with_dense(tmp_path)
    with pytest.raises(ValueError, match="names Dense, whose weights no pooling holds"):
        jm.models.read_pooling(tmp_path)
    model = jm.models.load(tmp_path)
    mean = vectors_of_texts(model, jm.models.Pooling("mean"))
    assert mean(model.params, jnp.asarray(IDS), jnp.asarray(MASK)).shape[1] != 5


def test_a_token_that_the_model_does_not_have_is_refused(tmp_path):
    folder_of("encoders/mpnet", tmp_path)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 99}, "a"))
    model = dataclasses.replace(jm.models.load(tmp_path), tokenizer=words)
    with pytest.raises(ValueError, match="the token ids reach from 99 to 99, expected 0 to below"):
        sentence_embedder(model)(model.params, ["b"])
    words.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="'b' with the id 99, expected ids below 37"):
        jm.models.load(tmp_path)
