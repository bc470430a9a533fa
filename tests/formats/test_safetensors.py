"""A safetensors file is refused where the reference reader refuses it; a type when it is read."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from jaxmem.formats.safetensors import safetensors as read
from jaxmem.formats.safetensors import sharded


def write(path, header, data=b"", text=None):
    text = json.dumps(header).encode() if text is None else text
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(begin, end, dtype="F32", shape=None):
    shape = [(end - begin) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


DTYPES = [*("uint16", "uint32", "uint64", "int16", "bool"), ml_dtypes.float8_e4m3fn]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_type_that_the_writer_has_is_read_back(dtype, tmp_path):
    want = np.arange(4).astype(dtype)
    safetensors.numpy.save_file({"w": want}, tmp_path / "w.safetensors")
    got = read(tmp_path / "w.safetensors")["w"].load()
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(got, want)


def test_a_type_that_is_not_known_is_named_when_its_tensor_is_read(tmp_path):
    header = {"x": entry(0, 2, "F4", [4]), "w": entry(2, 6)}
    tensors = read(write(tmp_path / "w.safetensors", header, bytes(6)))
    assert tensors["w"].load().tolist() == [0.0]
    with pytest.raises(ValueError, match=r"w\.safetensors: x is of type F4, expected one of F64"):
        tensors["x"].load()


@pytest.mark.parametrize(
    "header, size, message",
    [
        ({"a": entry(0, 8), "b": entry(4, 12)}, 12, "b begins at byte 4 of the data, expected 8"),
        ({"a": entry(0, 4), "b": entry(8, 12)}, 12, "b begins at byte 8 of the data, expected 4"),
        ({"a": entry(0, 4)}, 8, "its tensors take 4 bytes, and 8 are there"),
        ({"a": entry(0, 8)}, 4, "its tensors take 8 bytes, and 4 are there"),
        ({"a": entry(0, 4, shape=[2])}, 4, "expected 8 bytes for shape"),
        ({"a": entry(0, 4, shape=[-1])}, 4, r"a\.shape is \[-1\]"),
        ({"a": entry(0, 4, shape=[True])}, 4, r"a\.shape is \[True\]"),
        ({"a": entry(0, 4, shape=[2**62, 2**62])}, 4, "a.data_offsets"),
        ({"a": entry(4, 0, shape=[1])}, 4, "where its bytes begin and end"),
        ({"a": entry(0, 4) | {"extra": 1}}, 4, "a.extra is 1"),
        ({"a": 3}, 4, "a is 3, expected a JSON object"),
        ({"a": {"dtype": "F32"}}, 4, "a.shape is None"),
    ],
)
def test_a_header_that_cannot_be_names_the_tensor(header, size, message, tmp_path):
    with pytest.raises(ValueError, match=rf"w\.safetensors is no whole .*{message}"):
        read(write(tmp_path / "w.safetensors", header, bytes(size)))


@pytest.mark.parametrize("text", [b"[" * 100_000, b"\xff\xfe{}", b"[]", b'{"a": 1'])
def test_a_header_that_is_no_json_names_the_file(text, tmp_path):
    with pytest.raises(ValueError, match=r"w\.safetensors"):
        read(write(tmp_path / "w.safetensors", None, text=text))


@pytest.mark.parametrize(
    "index, message",
    [
        ("{", "is no JSON"),
        ("[]", "holds a list"),
        ("{}", "weight_map is None, expected the file of each tensor"),
        ('{"weight_map": ["a"]}', "weight_map is .*expected a JSON object"),
        ('{"weight_map": {"w": 3}}', "weight_map.w is 3, expected a string"),
        ('{"weight_map": {"w": "b.safetensors"}}', "lists b.safetensors, which is missing"),
        ('{"weight_map": {"w": ""}}', "is missing"),
        ('{"weight_map": {"v": "a.safetensors"}}', "says v is in a.safetensors, which does not"),
    ],
)
def test_an_index_that_cannot_be_is_named(index, message, tmp_path):
    safetensors.numpy.save_file({"w": np.zeros(2, np.float32)}, tmp_path / "a.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ValueError, match=rf"index\.json.*{message}"):
        sharded(tmp_path / "model.safetensors.index.json")


def test_tensors_that_the_index_does_not_list_are_named(tmp_path):
    tensors = {name: np.zeros(2, np.float32) for name in ("w", *"abcde")}
    safetensors.numpy.save_file(tensors, tmp_path / "a.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"w": "a.safetensors"}}')
    with pytest.warns(
        UserWarning, match=r"index\.json does not list a, b, c, d and 1 more"
    ) as seen:
        assert list(sharded(index)) == ["w"]
    assert seen[0].filename == __file__
