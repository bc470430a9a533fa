"""Seen texts are found by their losses as often as counting pairs says."""

import numpy as np
import pytest

from jaxmem.evaluation import membership


@pytest.mark.parametrize("shift", [0.0, 0.5, 3.0])
def test_the_area_is_the_share_of_pairs_in_order(shift):
    draw = np.random.default_rng(0)
    seen = draw.normal(size=70).round(1)
    unseen = draw.normal(shift, size=250).round(1)
    found = membership(seen, unseen)
    less, same = (seen[:, None] < unseen).mean(), (seen[:, None] == unseen).mean()
    assert found.auc.mean == pytest.approx(less + same / 2)
    assert found.auc.low < found.auc.mean < found.auc.high <= 1
    borders = [b for b in unseen if (unseen < b).mean() <= 0.01]
    assert found.true_positives == max((seen < b).mean() for b in borders)
    assert found.false_positives <= 0.01


def test_a_model_that_betrays_all_and_one_that_betrays_nothing():
    assert membership([1, 2], [3, 4]).auc.mean == membership([1, 2], [3, 4]).true_positives == 1
    assert membership([1, 1], [1, 1]).auc.mean == 0.5
    assert membership([1, 1], [1, 1]).true_positives == 0
    assert membership([1.0], [2.0]).auc.low is None


@pytest.mark.parametrize(
    ("args", "message"),
    [(([], [1.0]), "seen texts"), (([1.0], [np.nan]), "unseen texts are"), (([1.0], []), "unseen")],
)
def test_losses_that_cannot_be_compared_are_refused(args, message):
    with pytest.raises(ValueError, match=message):
        membership(*args)
    with pytest.raises(ValueError, match="false_positives is 2"):
        membership([1.0], [2.0], false_positives=2)
