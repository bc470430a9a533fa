"""The laws of both exports: layers encoded differently, tokenizers, files whole or absent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from exported import assert_stands_for

import jaxmem as jm
from jaxmem.architectures import gpt2
from jaxmem.interop import to_compressed_tensors, to_gguf
from jaxmem.models.loading import load
from jaxmem.models.model import Model

UNLIKE = {
    "layers/mlp/up/kernel": jm.Int(4, group=32),
    "layers[0]/mlp/up/kernel": jm.Int(8),
    "layers[0]/mlp/gate/kernel": jm.Int(8),
    "layers[1]/mlp/gate/kernel": jm.Codebook("nf4"),
    "layers/attn/q/kernel": jm.Shared(1),
    "layers/attn/v/kernel": jm.Basis(4),
    "layers/attn/out/kernel": jm.Sum((jm.Shared(1), jm.Int(4))),
    "layers/mlp_norm/scale": jm.Int(8),  # one matrix of all layers
    "layers/attn/k/kernel": jm.Dynamic(jm.Int(8)),
    "layers/mlp/down/kernel": jm.Dynamic(jm.Int(4, group=32), "e4m3"),
}


@pytest.mark.slow
@pytest.mark.parametrize("write", [to_gguf, to_compressed_tensors])
def test_layers_that_differ_keep_their_own_codes_and_layers_that_are_tied_are_decoded(
    write, model, tmp_path
):
    enc = jm.encode(model.params, UNLIKE)
    written = write(tmp_path / "w.gguf", model, enc)
    tied = {path for path in UNLIKE if "mlp/" not in path} - {"layers/attn/k/kernel"}
    assert set(written.decoded) == tied | {"layers[1:2]/mlp/gate/kernel"}
    rounded = {path for path, codec in UNLIKE.items() if isinstance(codec, jm.Dynamic)}
    assert set(written.unrounded) == (rounded if write == to_gguf else {"layers/mlp/down/kernel"})
    assert "no longer rounded: layers/" in str(written)
    kinds = [written.types[f"layers[{run}]/mlp/up/kernel"] for run in ("0:1", "1:2")]
    assert kinds == (["Q8_0", "Q4_0"] if write == to_gguf else ["int8", "int4"])
    for keep in (False, True):
        got = load(tmp_path / "w.gguf", encoded=keep)
        assert_stands_for(got.params, enc)
    assert [got.params["layers"]["mlp"][x]["kernel"].ends for x in ("up", "gate")] == [(1, 2)] * 2


def test_a_tokenizer_json_goes_through_both_formats(model, tmp_path):
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, "a"))
    hf = dict(model.hf_files, **{"generation_config.json": {"eos_token_id": 7, "top_k": 5}})
    options = dict(chat_template="{{ x }}", hf_files=hf)
    mine = Model(model.config, model.tensors, words, model.source, **options)
    to_gguf(tmp_path / "w.gguf", mine, tokenizer=False)
    to_compressed_tensors(tmp_path / "w", mine)
    for path in (tmp_path / "w.gguf", tmp_path / "w"):
        assert load(path).tokenizer.encode("b").ids == [1]
        assert load(path).chat_template == "{{ x }}"
    files = load(tmp_path / "w").hf_files
    assert files["generation_config.json"]["top_k"] == 5 and "tokenizer_config.json" in files


@pytest.mark.parametrize("write", [to_gguf, to_compressed_tensors])
def test_a_write_that_fails_leaves_nothing(write, model, tmp_path):
    gone = jax.tree.map(jnp.array, model.params)
    gone["final_norm"]["scale"].delete()
    with pytest.raises(RuntimeError, match="deleted"):
        write(tmp_path / "w.gguf", model, gone)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", [to_gguf, to_compressed_tensors])
def test_what_cannot_be_written_is_refused_before_any_work(write, model, tmp_path):
    other = gpt2.Config(vocab=64, width=32, layers=2, heads=4)
    with pytest.raises(ValueError, match=r"is a gpt2, and a GGUF|family 'gpt2' cannot be written"):
        write(tmp_path / "w", Model(other, {}, None, "small"))
    with pytest.raises(ValueError, match="shapes only"):
        write(tmp_path / "w", load("llama-1b"))
    with pytest.raises(ValueError, match="the params are not those of"):
        write(tmp_path / "w", model, {"w": np.ones(3)})
    with pytest.raises(ValueError, match=r"directory|exists"):
        write(tmp_path, model)
    assert list(tmp_path.iterdir()) == []
