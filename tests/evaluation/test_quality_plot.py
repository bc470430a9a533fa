"""A picture of quality against bytes."""

import numpy as np
import pytest
from matplotlib.image import imread

from jaxmem.evaluation.confidence import Estimate
from jaxmem.evaluation.quality_plot import plot
from jaxmem.evaluation.result import Evaluation


def lm(size, kl, low=None, high=None):
    return Evaluation(2046, size, perplexity=Estimate(20 + kl), kl=Estimate(kl, low, high))


def test_a_picture_has_a_panel_for_each_quality_that_was_measured(tmp_path):
    one, two = tmp_path / "one.png", tmp_path / "two"
    plot({"dense": Evaluation(2046, 650_000_000, perplexity=Estimate(20.1, 18, 22))}, one)
    plot({"dense": lm(650_000_000, 0), "int8": lm(163_000_000, 0.003, 0.002, 0.004)}, two)
    small, large = imread(one), imread(two, format="png")
    assert large.shape[1] == 2 * small.shape[1]
    assert np.ptp(large) > 0


def test_encoders_are_drawn_by_rank_and_cosine(tmp_path):
    plot({"int4": Evaluation(30, 9, spearman=Estimate(0.8), cosine=Estimate(0.99))}, tmp_path / "p")
    assert imread(tmp_path / "p", format="png").shape[1] == 1500


def test_nothing_to_draw_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="0 evaluations hold no quality"):
        plot({}, tmp_path / "p.png")
