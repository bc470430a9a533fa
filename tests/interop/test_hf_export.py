"""Every family that loads is written as a Hugging Face folder, and reads again as it was."""

import dataclasses
import json
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from checkpoints import random_tensors, write_gguf, write_llama2c
from exported import REFERENCES, folder_of
from safetensors.numpy import load_file

import jaxmem as jm
from jaxmem.architectures import gpt2, llama
from jaxmem.core.lazy import Lazy
from jaxmem.interop import to_hf
from jaxmem.models.checkpoint_tensors import _HARMLESS, bare_name, nested
from jaxmem.models.loading import load
from jaxmem.models.model import Model
from jaxmem.models.sentence_pooling import Pooling, pooling_of

FAMILIES = sorted(
    str(path.relative_to(REFERENCES).with_suffix("")) for path in REFERENCES.glob("*/*.npz")
)
OLDER = ["bert", "gpt2", "llama2", "llama3", "mistral", "qwen2", "qwen3", "gemma3"]


@pytest.mark.parametrize("name", OLDER + FAMILIES)
def test_every_family_is_written_as_it_was_read(name, tmp_path):
    tensors = folder_of(name, tmp_path)
    model = load(tmp_path)
    to_hf(model, tmp_path / "again")
    written = load_file(tmp_path / "again/model.safetensors")
    expected = {x.replace(".gamma", ".weight").replace(".beta", ".bias"): w
                for x, w in tensors.items()}  # fmt: skip
    again = load(tmp_path / "again")
    assert all(_HARMLESS.fullmatch(bare_name(x)) for x in set(expected) - set(written))
    if normed := [x for x in written if "parametrizations" in x]:  # a direction of any length
        assert set(normed) <= set(expected)
        assert_equal(again.params, model.params)
    for path in written.keys() - normed:
        np.testing.assert_array_equal(written[path], expected[path])
    assert again.config == model.config and again.hf_files.keys() == model.hf_files.keys()


def test_encoded_weights_are_decoded_and_listed(tmp_path):
    folder_of("decoders/qwen2_moe", tmp_path)
    model = load(tmp_path)
    experts = "layers_0/mlp/experts/gate/kernel"
    plan = {experts: jm.Int(4, group=4), "layers_2/attn/q/kernel": jm.Cast("bfloat16")}
    enc = jm.encode(model.params, plan)
    written = to_hf(model, tmp_path / "again", enc)
    assert written.decoded == (experts,)
    assert written.types["layers_2/attn/q/kernel"] == "bfloat16"
    assert_equal(load(tmp_path / "again").params, jm.decode(enc))


def test_layers_encoded_differently_or_together_are_decoded(model, tmp_path):
    plan = {
        "layers[0]/mlp/up/kernel": jm.Int(8),
        "layers/attn/q/kernel": jm.Shared(1),
        "layers/mlp_norm/scale": jm.Int(8),  # one matrix of all layers
    }
    enc = jm.encode(model.params, jm.choose(model.params, plan))
    assert set(to_hf(model, tmp_path / "w", enc).decoded) == {
        path.replace("[0]", "") for path in plan
    }
    assert_equal(load(tmp_path / "w").params, jm.decode(enc))


def test_a_large_model_is_in_several_files(model, tmp_path):
    written = to_hf(model, tmp_path / "w", dtype="bfloat16", shard_bytes=60_000)
    index = json.loads((tmp_path / "w/model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    sizes = [(tmp_path / "w" / file).stat().st_size for file in files]
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors" and len(files) > 1
    assert max(sizes) < 63_000 and set(written.types.values()) == {"bfloat16"}
    assert index["metadata"]["total_size"] == 2 * sum(x.size for x in jax.tree.leaves(model.params))
    again = load(tmp_path / "w", dtype="bfloat16")
    assert_equal(again.params, jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.params))
    assert json.loads((tmp_path / "w/config.json").read_text())["torch_dtype"] == "bfloat16"


def test_one_layer_is_in_memory_at_a_time(tmp_path):
    sizes = dict(vocab=8, width=64, ffn=2048, layers=16, heads=2, kv_heads=2, head_dim=8)
    config = llama.Config(**sizes)
    maps = llama.weights(config)
    zeros = lambda x: Lazy(x.shape, np.float32, lambda _: np.zeros(x.array_shape), x.stacked)
    model = Model(config, nested({path: zeros(x) for path, x in maps.items()}), None, "zeros")
    tracemalloc.start()
    nbytes = to_hf(model, tmp_path / "w").nbytes
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < nbytes / 5  # a few copies of a layer, of which there are 48


def test_tokens_and_templates_of_the_folder_are_written_again(tmp_path):
    folder_of("decoders/gemma", tmp_path)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, "a"))
    words.save(str(tmp_path / "tokenizer.json"))
    extra = {
        "generation_config.json": {"eos_token_id": [2, 3], "temperature": 0.6},
        "tokenizer_config.json": {"pad_token": "a", "auto_map": {"AutoTokenizer": "its.Code"}},
    }
    for name, content in extra.items():
        (tmp_path / name).write_text(json.dumps(content))
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    model = load(tmp_path)
    model.save(tmp_path / "saved")
    saved = load(tmp_path / "saved")
    assert saved.hf_files == model.hf_files and saved.config.eos == (2, 3)
    to_hf(saved, tmp_path / "again")
    again = load(tmp_path / "again")
    assert (again.config, again.chat_template) == (model.config, "{{ messages }}")
    assert again.hf_files["generation_config.json"] == extra["generation_config.json"]
    assert again.hf_files["tokenizer_config.json"] == {"pad_token": "a"}
    assert again.tokenizer.encode("b").ids == [1]


def test_a_folder_of_sentence_transformers_stays_one(tmp_path):
    folder_of("encoders/mpnet", tmp_path)
    kinds = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [{"path": path, "type": f"a.{kind}"} for kind, path in kinds.items()]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 7}))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    model = load(tmp_path)
    model.save(tmp_path / "saved")
    to_hf(load(tmp_path / "saved"), tmp_path / "again")
    again = load(tmp_path / "again")
    assert again.hf_files["modules.json"] == modules
    assert pooling_of(again.hf_files, "") == Pooling("first", normalized=True, length=7)


def test_the_text_part_of_a_multimodal_checkpoint_stands_alone(tmp_path):
    tensors = folder_of("gemma3", tmp_path)
    text = json.loads((tmp_path / "config.json").read_text())
    whole = {"model_type": "gemma3", "text_config": text, "vision_config": {"hidden_size": 8}}
    (tmp_path / "config.json").write_text(json.dumps(whole | {"eos_token_id": [1, 7]}))
    model = load(tmp_path)
    to_hf(model, tmp_path / "again")
    again = load(tmp_path / "again")
    assert again.config == model.config and 7 in again.config.eos
    assert again.hf_files["config.json"]["architectures"] == ["Gemma3ForCausalLM"]
    assert load_file(tmp_path / "again/model.safetensors").keys() == tensors.keys()


def test_a_changed_head_and_a_config_of_the_llama_family_are_written_anew(model, tmp_path):
    rotated = jm.models.rotate(model)
    to_hf(rotated, tmp_path / "w")
    again = load(tmp_path / "w")
    assert again.config == rotated.config and not again.config.tied
    smaller = dataclasses.replace(model.config, context=8)
    to_hf(dataclasses.replace(model, config=smaller, hf_files={}), tmp_path / "v")
    assert load(tmp_path / "v").config == smaller


@pytest.mark.parametrize("source", [write_gguf, write_llama2c])
def test_a_file_of_another_tool_becomes_a_folder(source, tmp_path):
    model = load(source(tmp_path, random_tensors()))
    to_hf(model, tmp_path / "again")
    again = load(tmp_path / "again")
    assert again.config == model.config
    assert_equal(again.params, model.params)
    assert again.hf_files["config.json"]["architectures"] == ["LlamaForCausalLM"]


def test_what_cannot_be_written_is_refused_by_name(model, tmp_path):
    def refused(match, model, params=None, **options):
        with pytest.raises(ValueError, match=match):
            to_hf(model, tmp_path / "w", params, **options)
        assert list(tmp_path.iterdir()) == []

    large = jax.tree.map(lambda x: x * 1e5, model.params)
    refused("float8_e5m2, expected float32 or", model, dtype="float8_e5m2")
    refused("embed/embedding has a number of .*, too large for float16", model, large, dtype="f2")
    refused("the params are not those of", model, {"layers": model.params["layers"]})
    refused("shapes only", load("llama-1b"))
    config = gpt2.Config(vocab=8, width=4, layers=1, heads=1)
    mine = Model(config, {}, None, "mine")
    refused("mine was not read with a config.json.*family 'gpt2'", mine)
    hf = {"model_type": "gpt2", "vocab_size": 8, "n_embd": 4, "n_layer": 2, "n_head": 1}
    files = {"config.json": hf}
    refused("of mine says layers = 2, and the model has layers = 1",
            dataclasses.replace(mine, hf_files=files))  # fmt: skip
    with pytest.raises(ValueError, match="exists"):
        to_hf(model, tmp_path)


def assert_equal(got, expected):
    jax.tree.map(np.testing.assert_array_equal, got, expected)
