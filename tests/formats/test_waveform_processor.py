"""Sounds become the samples that the processor of transformers makes."""

import json
import pathlib

import numpy as np
import pytest

from jaxmem.models import WaveformProcessor

FILE = dict(np.load(pathlib.Path(__file__).parents[1] / "reference/processed_sounds.npz"))
SOUNDS = [FILE["short"], FILE["long"]]


@pytest.mark.parametrize("name", ["masked", "unmasked"])
def test_samples_equal_the_reference(name):
    process = WaveformProcessor.from_hf(json.loads(str(FILE[f"{name}_config"])))
    samples, mask = process(SOUNDS, rate=16_000)
    np.testing.assert_allclose(samples, FILE[name], atol=1e-6)
    assert mask is None if name == "unmasked" else mask.sum(1).tolist() == [9, 14]


@pytest.mark.parametrize("change", [{"feature_size": 80}, {"padding_side": "left"},
    {"feature_extractor_type": "ASTFeatureExtractor"}, {"sampling_rate": 0},
    {"do_normalize": 1}, {"twist": 2}])  # fmt: skip
def test_what_is_not_computed_is_refused_by_name(change):
    with pytest.raises(ValueError, match=f"^{next(iter(change))} is "):
        WaveformProcessor.from_hf(change)


def test_sounds_that_cannot_be_are_refused():
    process = WaveformProcessor()
    with pytest.raises(ValueError, match="8000 samples a second, expected 16000"):
        process(SOUNDS, rate=8000)
    with pytest.raises(ValueError, match=r"shape \(2, 3\), expected \(samples,\)"):
        process([np.ones((2, 3))], rate=16_000)
    with pytest.raises(ValueError, match="there are no sounds"):
        process([], rate=16_000)
    with pytest.raises(TypeError, match="ndarray, expected a list"):
        process(SOUNDS[0], rate=16_000)
    with pytest.raises(ValueError, match="rate is 0"):
        WaveformProcessor(0)
