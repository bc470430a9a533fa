"""Files of CTranslate2: what they hold, and damaged ones."""

import struct

import ml_dtypes
import numpy as np
import pytest

from jaxmem.formats.ctranslate2 import ctranslate2, is_ctranslate2
from tests.ctranslate2_files import content

CODES = np.array([[10, -20, 127], [0, 4, -127]], np.int8)
VARIABLES = {
    "a/weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b/weight": CODES,
    "b/weight_scale": np.array([10.0, 0.5], np.float32),
    "c/bias": np.array([1.5, 2.5], np.float16),
    "d/bias": np.array([1.5, 3.0], ml_dtypes.bfloat16),
    "heads": np.int16(6),
}


@pytest.fixture
def write(tmp_path):
    def write(data):
        (tmp_path / "model.bin").write_bytes(data)
        return tmp_path / "model.bin"

    return write


def test_tensors_codes_options_and_aliases_are_read(write):
    path = write(content(VARIABLES, [("e/weight", "a/weight")]))
    file = ctranslate2(path)
    assert is_ctranslate2(path)
    assert (file.kind, file.revision, file.options) == ("WhisperSpec", 3, {"heads": 6})
    assert file.aliases == {"e/weight": "a/weight"}
    assert list(file.tensors) == ["a/weight", "b/weight", "c/bias", "d/bias", "e/weight"]
    assert file.tensors["e/weight"] is file.tensors["a/weight"]
    for name in ("a/weight", "c/bias", "d/bias"):
        np.testing.assert_array_equal(file.tensors[name].load(), VARIABLES[name])
        assert file.tensors[name].dtype == VARIABLES[name].dtype
    expected = CODES / np.float32([[10], [0.5]])
    np.testing.assert_array_equal(file.tensors["b/weight"].load(), expected)
    assert file.tensors["b/weight"].dtype == np.float32


def test_scales_of_a_convolution_are_by_row_and_place(write):
    codes, scales = np.full((2, 3, 2), 6, np.int8), np.array([[1, 2], [3, 6]], np.float32)
    file = ctranslate2(write(content({"w": codes, "w_scale": scales})))
    np.testing.assert_array_equal(file.tensors["w"].load(), np.repeat(6 / scales[:, None], 3, 1))


def test_every_cut_and_every_changed_byte_is_read_or_refused_by_name(write):
    data = content(VARIABLES, [("e/weight", "a/weight")])
    for end in range(len(data)):
        with pytest.raises(ValueError, match=r"model\.bin is no whole CTranslate2 file"):
            ctranslate2(write(data[:end]))
    refused = 0
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 0xFF
        try:
            for tensor in ctranslate2(write(bytes(damaged))).tensors.values():
                tensor.load()
        except ValueError as error:
            refused += 1
            assert "model.bin" in str(error)
    assert refused > len(data) // 2


ONE = {"w": np.zeros((2, 3), np.float32)}
MANY = content({}).replace(struct.pack("<II", 3, 0), struct.pack("<II", 3, 2**32 - 1))


@pytest.mark.parametrize(
    "data, problem",
    [
        (content(ONE, version=7), "its version is 7, expected one of"),
        (content(ONE) + b"..", "its last 2 bytes belong to no variable"),
        (content(ONE, [("v", "x")]), "the alias 'v' is not one name"),
        (content(ONE, [("w", "w")]), "the alias 'w' is not one name"),
        (MANY, "hold no 4294967295 variables"),
        (content(ONE).replace(b"\x02\x02\0\0\0", b"\x05\x02\0\0\0"), "w has 5 axes"),
        (content({"w": CODES, "w_scale": np.float32(1)}), "w holds int8 of shape .2, 3. with"),
        (content({"w": np.int16([[1]]), "w_scale": np.float32([1])}), "w holds int16"),
    ],
)
def test_what_cannot_be_is_named(data, problem, write):
    with pytest.raises(ValueError, match=rf"model\.bin is no whole CTranslate2 file: .*{problem}"):
        ctranslate2(write(data))


def test_a_scale_of_zero_is_refused_when_it_is_read(write):
    tensors = {"w": CODES, "w_scale": np.float32([0, 1])}
    with pytest.raises(ValueError, match=r"model\.bin: w has scales that are not positive"):
        ctranslate2(write(content(tensors))).tensors["w"].load()
