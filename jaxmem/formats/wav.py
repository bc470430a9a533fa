"""The samples of a WAV file."""

import os
import wave

import numpy as np


def read_wav(path: str | os.PathLike) -> tuple[np.ndarray, int]:
    """The samples (n,) f32 of a WAV file, from -1 to 1, and how many of them are a second.

    The channels are averaged. Samples are integers of 8, 16, 24 or 32 bits.

    Example:
        >>> import pathlib, tempfile, wave
        >>> path = pathlib.Path(tempfile.mkdtemp(), "tone.wav")
        >>> with wave.open(str(path), "wb") as file:
        ...     file.setparams((1, 2, 16_000, 0, "NONE", ""))
        ...     file.writeframes(np.array([0, 16_384, -32_768], "<i2").tobytes())
        >>> samples, rate = read_wav(path)
        >>> samples.tolist(), rate
        ([0.0, 0.5, -1.0], 16000)

    Raises:
        ValueError: the file is no WAV file of integers, or is cut off; the message names it.
    """
    try:
        with wave.open(os.fspath(path), "rb") as file:
            channels, size, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            data, count = file.readframes(file.getnframes()), file.getnframes() * channels
    except (wave.Error, EOFError) as error:
        raise ValueError(f"{path} is no WAV file of integers: {error}") from error
    if size not in (1, 2, 3, 4) or len(data) != count * size or not count:
        raise ValueError(f"{path} holds {len(data)} bytes, expected {count} times {size}")
    integers = np.zeros((count, 4), np.uint8)  # the highest bytes are last
    integers[:, 4 - size :] = np.frombuffer(data, np.uint8).reshape(count, size)
    if size == 1:  # has no sign: silence is 128
        integers[:, 3] ^= 128
    numbers = integers.reshape(-1).view("<i4").astype(np.float32) / 2.0**31
    return numbers.reshape(-1, channels).mean(1), rate
