"""WaveformProcessor: samples that a model reads, from sounds: normalised and padded."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..core.arguments import check_fields
from ..io.json_fields import JsonFields
from .sounds import checked_sounds

_EPS = 1e-7  # beside the variance


@dataclasses.dataclass(frozen=True)
class WaveformProcessor:
    """Maps sounds to samples (batch, samples) f32, and a mask of those that are no padding.

    `preprocessor_config.json` of a Hugging Face folder says how; a `Model` that was read from such
    a folder has it as `model.processor`.

    Args:
        rate: samples in a second.
        normalised: each sound gets mean 0 and variance 1.
        masked: the model was trained with a mask. Without one, the mask is None, and padding counts
            in the mean and the variance.

    Example:
        >>> import numpy as np
        >>> from jaxmem.models import WaveformProcessor
        >>> samples, mask = WaveformProcessor()([np.arange(4.0), np.arange(6.0)], rate=16_000)
        >>> samples.shape, mask.sum(1).tolist(), bool(abs(samples[0, :4].mean()) < 1e-6)
        ((2, 6), [4, 6], True)

    Raises:
        ValueError: the rate is below 1.
        TypeError: a field has another type.
    """

    rate: int = 16_000
    normalised: bool = True
    masked: bool = True

    def __post_init__(self):
        check_fields(self)
        if self.rate < 1:
            raise ValueError(f"rate is {self.rate}, expected at least 1 sample in a second")

    def __call__(self, sounds: Sequence[Any], *, rate: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Samples (batch, longest) f32 of sounds (samples,), and their mask; zeros are padding.

        `rate` is that of the sounds, in samples a second: another one than the model's is refused.

        Raises:
            TypeError: `sounds` is no list.
            ValueError: there is no sound, or one has not one axis, or no sample; the rate is
                another one.
        """
        arrays = checked_sounds(sounds, rate, self.rate)
        lengths = np.asarray([x.size for x in arrays])
        mask = np.arange(lengths.max()) < lengths[:, None]
        samples = np.zeros(mask.shape, np.float32)
        for row, x in zip(samples, arrays):
            row[: x.size] = _unit(x) if self.normalised and self.masked else x
        if self.normalised and not self.masked:
            samples = np.stack(list(map(_unit, samples)))
        return samples, mask if self.masked else None

    @classmethod
    def from_hf(cls, hf: dict) -> "WaveformProcessor":
        """The processor of a `preprocessor_config.json`.

        Raises:
            ValueError: a field has a wrong value or is not computed here; the message names it.

        Example:
            >>> hf = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "do_normalize": False}
            >>> WaveformProcessor.from_hf(hf).normalised
            False
        """
        fields = JsonFields(hf)
        fields.expect("feature_extractor_type", "Wav2Vec2FeatureExtractor")
        fields.expect("feature_size", 1)
        fields.expect("padding_side", "right")
        fields.expect("padding_value", 0.0, 0)
        fields.ignore("processor_class", "return_tensors", "tokenizer_class")
        processor = cls(
            fields.integer("sampling_rate", 16_000),
            fields.boolean("do_normalize", True),
            fields.boolean("return_attention_mask", False),
        )
        fields.refuse_unread()
        return processor


def _unit(x: np.ndarray) -> np.ndarray:
    """x with mean 0 and variance 1."""
    return (x - x.mean()) / np.sqrt(x.var() + _EPS)
