"""Sounds become the spectrograms that the processor of transformers makes."""

import json
import pathlib

import numpy as np
import pytest
from drawn_weights import drawn

from jaxmem.models import LogMelProcessor

FILE = pathlib.Path(__file__).parents[1] / "reference/processed_spectrograms.npz"
SOUNDS = [drawn(f"sound {length}", (length,)) for length in (9000, 16_000)]


def test_spectrograms_equal_the_reference():
    file = np.load(FILE)
    process = LogMelProcessor.from_hf(json.loads(str(file["config"])))
    output = process(SOUNDS, rate=16_000)
    assert output.dtype == np.float32
    np.testing.assert_allclose(output, file["output"], atol=1e-4)


@pytest.mark.parametrize("change", [{"feature_size": 0}, {"padding_side": "left"},
    {"feature_extractor_type": "ASTFeatureExtractor"}, {"dither": 0.1},
    {"do_normalize": True}, {"twist": 2}])  # fmt: skip
def test_what_is_not_computed_is_refused_by_name(change):
    with pytest.raises(ValueError, match=f"^{next(iter(change))} is "):
        LogMelProcessor.from_hf({"feature_extractor_type": "WhisperFeatureExtractor"} | change)


def test_sounds_that_cannot_be_are_refused():
    process = LogMelProcessor(seconds=1)
    with pytest.raises(ValueError, match="8000 samples a second, expected 16000"):
        process(SOUNDS, rate=8000)
    with pytest.raises(ValueError, match="at most 16000 samples: cut a longer sound"):
        process([np.ones(16_001)], rate=16_000)
    with pytest.raises(TypeError, match="ndarray, expected a list"):
        process(SOUNDS[0], rate=16_000)
    with pytest.raises(ValueError, match="rate is 8000"):
        LogMelProcessor(rate=8000)
