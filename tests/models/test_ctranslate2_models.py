"""Whisper in a file of CTranslate2: the same model as in a folder of transformers."""

import json
import pathlib

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer, models

from jaxmem.architectures.families.seq2seq_families import CHOSEN
from jaxmem.models import ctranslate2_models, load
from tests.ctranslate2_files import content, whisper_variables
from tests.drawn_weights import drawn

REFERENCE = np.load(pathlib.Path(__file__).parents[1] / "reference/encoder_decoders/whisper.npz")
HF, SHAPES = (json.loads(str(REFERENCE[name])) for name in ("config", "shapes"))
TENSORS = {name: drawn(name, shape) for name, shape in SHAPES.items()}
TOKENS = {"<|startoftranscript|>": 3, "<|endoftext|>": 4, "<|notimestamps|>": 5, "a": 6}
TOKENS |= {"<|transcribe|>": 9}
HEAD = [("decoder/projection/weight", "decoder/embeddings/weight")]


@pytest.fixture
def folder(tmp_path):
    Tokenizer(models.WordLevel(TOKENS, "a")).save(str(tmp_path / "tokenizer.json"))
    fields = {"suppress_ids": [1, 2], "suppress_ids_begin": [7], "lang_ids": [8]}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    write(tmp_path)
    return tmp_path


def write(folder, change=lambda variables: variables, aliases=HEAD, **options):
    variables = whisper_variables(TENSORS, HF)
    (folder / "model.bin").write_bytes(content(change(variables), aliases, **options))


def test_its_parameters_and_sizes_are_those_of_transformers(folder, tmp_path_factory):
    from safetensors.numpy import save_file

    hf = tmp_path_factory.mktemp("hf")
    (hf / "config.json").write_text(json.dumps(HF))
    save_file(TENSORS, hf / "model.safetensors", {"format": "pt"})
    expected, model = load(hf), load(folder)
    tokens = ("start", "prefix", "eos", "suppressed", "suppressed_first", "forced")
    config, hf_config = model.config.to_dict(), expected.config.to_dict()
    assert {k: x for k, x in config.items() if k not in tokens} == {
        k: x for k, x in hf_config.items() if k not in tokens
    }
    jax.tree.map(np.testing.assert_array_equal, model.params, expected.params)
    assert [config[name] for name in tokens[:5]] == [3, (5,), (4,), (1, 2), (7,)]
    assert model.processor.mels == model.config.mels == HF["num_mel_bins"]
    assert model.hf_files["preprocessor_config.json"]["feature_size"] == HF["num_mel_bins"]


def test_a_file_of_codes_loads_as_floats(folder):
    def coded(variables):
        w = variables["decoder/embeddings/weight"]
        scales = 127 / np.abs(w).max(1)
        codes = {"decoder/embeddings/weight": np.rint(w * scales[:, None]).astype(np.int8)}
        return variables | codes | {"decoder/embeddings/weight_scale": scales.astype(np.float32)}

    write(folder, coded)
    found = load(folder / "model.bin").params["embed"]["embedding"]
    table = TENSORS["model.decoder.embed_tokens.weight"]
    assert 0 < np.abs(found - table).max() <= np.abs(table).max() / 250


def test_equal_tensors_may_be_held_once(folder):
    one, other = (f"{stack}/layer_norm/beta" for stack in ("decoder", "encoder"))
    without = lambda variables: {k: x for k, x in variables.items() if k != other}
    write(folder, without, [*HEAD, (other, one)])
    params = load(folder).params
    norms = [params[stack]["final_norm"]["bias"] for stack in ("decoder", "encoder")]
    np.testing.assert_array_equal(*norms)


def changed(**arrays):
    arrays = {name.replace("__", "/"): x for name, x in arrays.items()}
    return lambda variables: variables | arrays


BIAS = np.ones(3 * HF["d_model"], np.float32)


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"change": changed(decoder__activation=np.int8(0))}, "decoder/activation is 0"),
        ({"change": changed(decoder__alibi=np.int8(1))}, "decoder/alibi is 1"),
        (
            {"change": changed(extra__weight=np.ones((2, 2), np.float32))},
            "nothing here computes, extra",
        ),
        (
            {"change": changed(encoder__layer_0__self_attention__linear_0__bias=BIAS)},
            "a bias of keys",
        ),
        ({"change": lambda variables: {}, "aliases": []}, "decoder/projection/weight is not"),
        ({"kind": "TransformerSpec"}, "holds a TransformerSpec of revision 3"),
        ({"revision": 4}, "revision 4, expected a WhisperSpec of at most 3"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(change, problem, folder):
    write(folder, **change)
    with pytest.raises(ValueError, match=rf"model\.bin.* {problem}"):
        load(folder)


def test_a_tensor_that_is_missing_is_named(folder):
    name = "encoder/conv1/bias"
    write(folder, lambda variables: {k: x for k, x in variables.items() if k != name})
    with pytest.raises(ValueError, match=rf"model\.bin holds no {name}"):
        load(folder)


def test_a_multilingual_model_chooses_the_language_and_transcribes(folder, monkeypatch):
    monkeypatch.setattr(ctranslate2_models, "_ENGLISH", HF["vocab_size"] - 1)
    assert load(folder).config.prefix == (CHOSEN, 9, 5)


def test_the_tokens_of_a_text_are_the_tokenizer_s(folder):
    Tokenizer(models.WordLevel({"a": 0}, "a")).save(str(folder / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"has no token <\|startoftranscript\|>"):
        load(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"no tokenizer\.json beside it"):
        load(folder)
