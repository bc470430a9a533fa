"""A source that cannot be read says what to do: convert a pickle, name the hub, give the file."""

import json
import os

import pytest
from checkpoints import HF

from jaxmem.models import load


@pytest.mark.parametrize(
    "name, advice",
    [
        ("org/name-1.5B", "hub, give hf://org/name-1.5B"),
        ("https://huggingface.co/org/name", "hub, give hf://org/name"),
        ("huggingface.co/org/name/blob/main/x.safetensors", "hub, give hf://org/name"),
        ("https://example.com/model.gguf", "must be downloaded first"),
    ],
)
def test_a_name_of_the_hub_or_an_address_says_what_to_give(name, advice):
    with pytest.raises(ValueError, match=f"no model .*{advice}$"):
        load(name)


@pytest.mark.parametrize("start", [b"PK\x03\x04", b"\x80\x02}q", b"\x80\x04\x95\x10"])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt"])
def test_a_pickle_says_how_to_convert_it(name, start, tmp_path):
    (tmp_path / name).write_bytes(start + bytes(64))
    with pytest.raises(ValueError, match=f"{name} is a pickle .*save_pretrained"):
        load(tmp_path / name)
    (tmp_path / "config.json").write_text(json.dumps(HF))
    with pytest.raises(ValueError, match=f"neither .*{name} is a pickle"):
        load(tmp_path)


def test_a_llama2c_file_of_width_640_is_no_pickle(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"\x80\x02\0\0" + bytes(64))
    with pytest.raises(ValueError, match=r"no llama2.c file"):
        load(tmp_path / "model.bin")


@pytest.mark.parametrize(
    "name, advice",
    [
        ("adapter_config.json", "it holds an adapter"),
        ("model-Q4_K.gguf", "give the file: .*model-Q4_K.gguf"),
        ("consolidated.safetensors", "give the file: .*consolidated.safetensors"),
        ("stories.bin", "give the file: .*stories.bin"),
        ("flax_model.msgpack", "flax_model.msgpack is not read"),
    ],
)
def test_a_folder_without_a_model_says_what_it_holds(name, advice, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(HF))
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=f"neither model.safetensors nor .*{advice}"):
        load(tmp_path)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    for name in ("model.safetensors", "model.gguf", "model.bin"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(ValueError, match=f"no model .*{name}"):
            load(tmp_path / name)


@pytest.mark.parametrize("dtype", ["int8", "bool"])
def test_weights_are_floating_point(dtype):
    with pytest.raises(TypeError, match=f"dtype is '{dtype}', expected a type of floating-point"):
        load("llama-1b", dtype=dtype)


def test_shapes_have_no_codes():
    with pytest.raises(ValueError, match="llama-1b has shapes and no codes"):
        load("llama-1b", encoded=True)
