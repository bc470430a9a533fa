"""WAV files of every width of integers are read; others are refused by name."""

import wave

import numpy as np
import pytest

from jaxmem.formats.wav import read_wav

VALUES = np.array([0.0, 0.5, -1.0, 0.25], np.float32)


def write(path, size, channels, data):
    with wave.open(str(path), "wb") as file:
        file.setparams((channels, size, 8000, 0, "NONE", ""))
        file.writeframes(data)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_samples_are_from_minus_1_to_1(tmp_path, size):
    integers = (VALUES * 2.0 ** (8 * size - 1)).astype(np.int64) + (128 if size == 1 else 0)
    data = b"".join(int(x).to_bytes(size, "little", signed=size > 1) for x in integers)
    write(tmp_path / "a.wav", size, 1, data)
    samples, rate = read_wav(tmp_path / "a.wav")
    np.testing.assert_array_equal(samples, VALUES)
    write(tmp_path / "b.wav", size, 2, data)
    np.testing.assert_array_equal(read_wav(tmp_path / "b.wav")[0], [0.25, -0.375])
    assert rate == 8000 and samples.dtype == np.float32


@pytest.mark.parametrize("data", [b"", b"RIFF", b"RIFF\x00\x00\x00\x00WAVE", b"OggS" * 20])
def test_another_file_is_refused_by_name(tmp_path, data):
    path = tmp_path / "other.wav"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"other\.wav is no WAV file of integers"):
        read_wav(path)


def test_a_file_that_is_cut_off_is_refused(tmp_path):
    write(tmp_path / "cut.wav", 2, 1, bytes(64))
    data = (tmp_path / "cut.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(data[:-9])
    with pytest.raises(ValueError, match=r"cut\.wav"):
        read_wav(tmp_path / "cut.wav")
