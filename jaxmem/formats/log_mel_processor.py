"""LogMelProcessor: the log-mel spectrograms that a model reads, from the samples of sounds."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..core.arguments import check_fields
from ..io.json_fields import JsonFields
from .sounds import checked_sounds

_TOP = 8_000.0  # Hz, where the highest band ends
_LEAST, _RANGE = 1e-10, 8.0  # the least energy, and decades below the loudest that are kept
_LINEAR, _PER_HZ, _PER_E = 1_000.0, 3 / 200, 27 / np.log(6.4)  # Slaney's scale of mels


@dataclasses.dataclass(frozen=True)
class LogMelProcessor:
    """Maps sounds to spectrograms (batch, mels, frames) f32 of one length (Radford et al., 2022).

    A frame has the energies of bands that are equally wide in mels, log10 of them, cut 8 decades
    below the loudest and scaled. Silence is padding. `preprocessor_config.json` of a Hugging Face
    folder has the sizes; a `Model` that was read from such a folder has it as `model.processor`.

    Args:
        mels: bands of a frame.
        rate: samples in a second.
        window: samples of a frame.
        hop: samples from one frame to the next.
        seconds: of a spectrogram, whose frames are `seconds * rate / hop`.

    Example:
        >>> import numpy as np
        >>> from jaxmem.models import LogMelProcessor
        >>> LogMelProcessor()([np.zeros(16_000), np.ones(8)], rate=16_000).shape
        (2, 80, 3000)

    Raises:
        ValueError: a size is below 1, or the rate is too low for the bands.
        TypeError: a field has another type.
    """

    mels: int = 80
    rate: int = 16_000
    window: int = 400
    hop: int = 160
    seconds: int = 30

    def __post_init__(self):
        check_fields(self)
        for name in ("mels", "window", "hop", "seconds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.rate < 2 * _TOP:
            raise ValueError(f"rate is {self.rate}, expected at least {2 * _TOP:.0f}")

    def __call__(self, sounds: Sequence[Any], *, rate: int) -> np.ndarray:
        """Spectrograms (batch, mels, frames) f32 of sounds (samples,).

        `rate` is that of the sounds, in samples a second: another one than the model's is refused.

        Raises:
            TypeError: `sounds` is no list.
            ValueError: there is no sound, or one has not one axis, no sample, or too many; the
                rate is another one.
        """
        return np.stack([self._spectrogram(x) for x in checked_sounds(sounds, rate, self.rate)])

    def _spectrogram(self, samples: np.ndarray) -> np.ndarray:
        """The spectrogram (mels, frames) of one sound."""
        most, half = self.seconds * self.rate, self.window // 2
        if len(samples) > most:
            raise ValueError(
                f"a sound has {len(samples)} samples, expected at most {most} samples: cut a "
                "longer sound into parts"
            )
        padded = np.pad(np.pad(samples, (0, most - len(samples))), half, mode="reflect")
        frames = np.lib.stride_tricks.sliding_window_view(padded, self.window)[:: self.hop]
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(self.window) / self.window)
        spectrum = np.fft.rfft(frames[: most // self.hop] * hann.astype(np.float32))
        energies = np.abs(spectrum).astype(np.float32) ** 2 @ mel_bands(self).T
        logs = np.log10(np.maximum(energies, _LEAST)).T
        return (np.maximum(logs, logs.max() - _RANGE) + 4.0) / 4.0

    @classmethod
    def from_hf(cls, hf: dict) -> "LogMelProcessor":
        """The processor of a `preprocessor_config.json`.

        Raises:
            ValueError: a field has a wrong value or is not computed here; the message names it.

        Example:
            >>> hf = {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 128}
            >>> LogMelProcessor.from_hf(hf).mels
            128
        """
        fields = JsonFields(hf)
        fields.expect("feature_extractor_type", "WhisperFeatureExtractor")
        fields.expect("padding_side", "right")
        fields.expect("padding_value", 0.0, 0)
        fields.expect("dither", 0.0, 0)
        fields.expect("do_normalize", False)
        fields.ignore("processor_class", "return_attention_mask", "n_samples", "nb_max_frames")
        fields.ignore("mel_filters", "return_tensors", "tokenizer_class")  # of the sizes, too
        processor = cls(
            mels=fields.integer("feature_size", 80),
            rate=fields.integer("sampling_rate", 16_000),
            window=fields.integer("n_fft", 400),
            hop=fields.integer("hop_length", 160),
            seconds=fields.integer("chunk_length", 30),
        )
        fields.refuse_unread()
        return processor


@functools.cache
def mel_bands(processor: LogMelProcessor) -> np.ndarray:
    """The weight of each frequency in each band, (mels, window / 2 + 1) f32 (Slaney, 1998).

    A band is a triangle from the middle of the one before to the middle of the next one, of area 1
    in Hz. Mels are linear up to 1,000 Hz, and logarithmic above.

    Example:
        >>> bands = mel_bands(LogMelProcessor(mels=4))
        >>> bands.shape, [int(x) for x in 40 * bands.argmax(1)]  # the middle of each, in Hz
        ((4, 201), [600, 1240, 2320, 4320])
    """
    highest = _LINEAR * _PER_HZ + _PER_E * np.log(_TOP / _LINEAR)
    mels = np.linspace(0, highest, processor.mels + 2)
    knee = _LINEAR * _PER_HZ
    edges = np.where(mels < knee, mels / _PER_HZ, _LINEAR * np.exp((mels - knee) / _PER_E))
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    frequencies = np.linspace(0, processor.rate / 2, processor.window // 2 + 1)
    rising, falling = (frequencies - low) / (middle - low), (high - frequencies) / (high - middle)
    weights = np.maximum(0, np.minimum(rising, falling)) * 2 / (high - low)
    return weights.astype(np.float32)
