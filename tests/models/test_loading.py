"""One random Llama read back the same from every format; what is broken says so."""

import json
import math
import struct
import tracemalloc

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from checkpoints import (
    HF,
    LAYERS,
    VOCAB,
    WRITERS,
    D,
    random_tensors,
    write_gguf,
    write_llama2c,
    write_sharded,
    write_single,
)

from jaxmem.core.lazy import is_lazy
from jaxmem.models import load


@pytest.fixture(scope="module")
def tensors():
    return random_tensors()


@pytest.mark.parametrize("write", WRITERS)
def test_every_format_gives_the_same_parameters(write, tensors, tmp_path):
    model = load(write(tmp_path, tensors))
    blocks = model.params["layers"]
    for path, name in {"attn/q": "self_attn.q_proj", "mlp/down": "mlp.down_proj"}.items():
        part, kernel = path.split("/")
        for i in range(LAYERS):
            expected = tensors[f"model.layers.{i}.{name}.weight"].T
            np.testing.assert_array_equal(blocks[part][kernel]["kernel"][i], expected)
    embedding = model.params["embed"]["embedding"]
    np.testing.assert_array_equal(embedding, tensors["model.embed_tokens.weight"])
    assert sum(x.size for x in jax.tree.leaves(model.params)) == sum(
        w.size for w in tensors.values()
    )


@pytest.mark.parametrize("write", [write_gguf, write_llama2c])
def test_every_format_gives_the_same_logits(write, tensors, tmp_path):
    ids = jnp.arange(8, dtype=jnp.int32)[None]
    folder = tmp_path / "single"
    folder.mkdir()
    one, other = load(write_single(folder, tensors)), load(write(tmp_path, tensors))
    assert other.config == one.config.__class__(**one.config.to_dict() | {"eps": other.config.eps})
    expected, found = (jax.jit(m.apply)(m.params, ids) for m in (one, other))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, -4])
def test_a_truncated_file_is_one_clear_error(write, keep, tensors, tmp_path):
    path = write(tmp_path, tensors)
    path = path / "model-1.safetensors" if path.is_dir() else path
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match=path.name):
        load(tmp_path if write is write_sharded else path)


@pytest.mark.parametrize("suffix", ["safetensors", "gguf", "bin"])
@pytest.mark.parametrize("data", [b"\xff" * 4096, b"\x00" * 4096, b"GGUF" + b"\x03" * 4096])
def test_a_foreign_file_is_one_clear_error(suffix, data, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(HF))
    (tmp_path / f"model.{suffix}").write_bytes(data)
    with pytest.raises(ValueError, match=f"model.{suffix}"):
        load(tmp_path / f"model.{suffix}")


@pytest.mark.parametrize(
    "change", [{"dtype": "F8_E4M3"}, {"shape": [8, 8]}, {"data_offsets": [0, 10**15]}, {"shape": 3}]
)
def test_a_safetensors_entry_that_cannot_be_is_one_clear_error(change, tmp_path):
    entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} | change
    header = json.dumps({"w": entry}).encode()
    path = tmp_path / "w.safetensors"
    (tmp_path / "config.json").write_text(json.dumps(HF))
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    with pytest.raises(ValueError, match=r"w\.safetensors"):
        load(path)


def test_a_missing_tensor_is_named(tensors, tmp_path):
    rest = {k: v for k, v in tensors.items() if k != "model.layers.1.mlp.up_proj.weight"}
    with pytest.raises(ValueError, match=r"no tensor model\.layers\.1\.mlp\.up_proj\.weight"):
        load(write_single(tmp_path, rest))


def test_a_tensor_of_another_shape_is_named_before_it_is_read(tensors, tmp_path):
    wrong = tensors | {"model.norm.weight": np.zeros(D + 1, np.float32)}
    with pytest.raises(ValueError, match=r"model\.norm\.weight makes \(65,\)"):
        load(write_single(tmp_path, wrong))


@pytest.mark.parametrize("prefix", ["model.", "language_model.", "transformer."])
def test_names_with_a_head_s_prefix_are_found(prefix, tensors, tmp_path):
    named = {prefix + name: w for name, w in tensors.items()}
    found = load(write_single(tmp_path, named)).params["final_norm"]["scale"]
    np.testing.assert_array_equal(found, tensors["model.norm.weight"])


@pytest.mark.parametrize(
    "source",
    ["llama-9b", "no/such/dir", "hf://gpt2", "hf://a/b/c", "hf:///x", "setup.py", "LICENSE"],
)
def test_an_unknown_source_says_what_is_expected(source):
    with pytest.raises(ValueError, match=r"no model .*expected .*hf://org/name"):
        load(source)


def test_the_hub_out_of_reach_is_a_connection_error(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="hf://no-such-org/no-such-model"):
        load("hf://no-such-org/no-such-model")


@pytest.mark.parametrize("config", ["[]", "{", '{"model_type": "mamba"}', "{}"])
def test_a_config_that_is_not_ours_is_one_clear_error(config, tensors, tmp_path):
    write_single(tmp_path, tensors)
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match=tmp_path.name):
        load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"num_attention_heads": 0},
        {"num_hidden_layers": 2**31},
        {"num_hidden_layers": 9999},
        {"rms_norm_eps": "1e-5"},
        {"model_type": ["llama"]},
        {"text_config": 3},
        {"quantization_config": [1]},
    ],
)
def test_a_config_of_wrong_types_names_its_file_before_anything_is_made(change, tensors, tmp_path):
    write_single(tmp_path, tensors)
    (tmp_path / "config.json").write_text(json.dumps(HF | change))
    with pytest.raises(ValueError, match=f"{tmp_path.name}.*({next(iter(change))}|no tensor)"):
        load(tmp_path)


def test_one_file_of_several_reads_them_all(tensors, tmp_path):
    write_sharded(tmp_path, tensors)
    index = tmp_path / "model.safetensors.index.json"
    text = index.read_text()
    for i in range(3):
        name = f"model-{i + 1:05}-of-00003.safetensors"
        (tmp_path / f"model-{i}.safetensors").rename(tmp_path / name)
        text = text.replace(f"model-{i}.safetensors", name)
    index.write_text(text)
    assert load(tmp_path / name).config.layers == LAYERS


def test_a_model_ends_where_its_generation_config_says_and_is_saved_so(tensors, tmp_path):
    write_single(tmp_path, tensors)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))
    model = load(tmp_path)
    model.save(tmp_path / "saved")
    assert model.config.eos == load(tmp_path / "saved").config.eos == (2, 7)


def test_a_head_that_differs_from_the_embedding_is_used(tensors, tmp_path):
    head = tensors["model.embed_tokens.weight"] + 1
    model = load(write_single(tmp_path, tensors | {"lm_head.weight": head}))
    np.testing.assert_array_equal(model.params["head"]["kernel"], head.T)


def test_a_tensor_that_the_model_does_not_use_is_named(tensors, tmp_path):
    extra = {"score.weight": np.zeros((2, D), np.float32)}
    path = write_single(tmp_path, tensors | extra)
    with pytest.warns(UserWarning, match=r"does not use \(1\): score\.weight"):
        load(path)


def test_a_file_of_bfloat16_stays_bfloat16_and_a_mixed_one_becomes_float32(tensors, tmp_path):
    halves = {name: w.astype(ml_dtypes.bfloat16) for name, w in tensors.items()}
    types = lambda path: {x.dtype for x in jax.tree.leaves(load(path).tensors, is_leaf=is_lazy)}
    assert types(write_single(tmp_path, halves)) == {jnp.dtype("bfloat16")}
    mixed = halves | {"model.norm.weight": tensors["model.norm.weight"]}
    assert types(write_single(tmp_path, mixed)) == {jnp.dtype("float32")}


def test_weights_that_are_quantised_in_the_checkpoint_are_refused(tensors, tmp_path):
    write_single(tmp_path, tensors)
    config = HF | {"quantization_config": {"quant_method": "quip"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="quantised by 'quip'"):
        load(tmp_path)


def test_params_are_of_the_dtype_asked_for(tensors, tmp_path):
    model = load(write_single(tmp_path, tensors), dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(model.params)} == {jnp.dtype("bfloat16")}
    scale = tensors["model.norm.weight"].astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(model.params["final_norm"]["scale"], scale)


@pytest.mark.parametrize("write", WRITERS)
def test_walking_the_tensors_holds_one_piece_at_a_time(write, tensors, tmp_path):
    model, largest = load(write(tmp_path, tensors)), VOCAB * D * 4
    tracemalloc.start()
    for leaf in jax.tree.leaves(model.tensors, is_leaf=is_lazy):
        for part in leaf.parts():
            assert part.nbytes <= largest
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.5 * largest


@pytest.mark.parametrize(
    ("name", "count"),
    [("llama-1b", 1_235_814_400), ("llama-8b", 8_030_261_248), ("llama-70b", 70_553_706_496)],
)
def test_abstract_models_have_the_published_number_of_parameters(name, count):
    model = load(name)
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(model.params)) == count


def test_stories260k_tells_a_story(shared_data):
    model = load(shared_data / "stories260K" / "stories260K.bin")
    ids = model.tokenizer.encode("Once upon a time").ids
    step = jax.jit(model.apply)
    for at in range(len(ids), 40):
        padded = jnp.array([ids + [0] * (40 - at)], jnp.int32)
        ids.append(int(step(model.params, padded)[0, at - 1].argmax()))
    text = model.tokenizer.decode(ids)
    assert text.startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play"
    )
