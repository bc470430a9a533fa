"""Texts are chosen by what a large model gains on them."""

import numpy as np
import pytest

import jaxmem as jm


def test_the_texts_of_the_largest_gain_are_kept_in_order():
    small, large = np.array([1.0, 5.0, 3.0, 9.0]), np.array([0.9, 4.0, 3.5, 2.0])
    assert jm.data.difference_sampling(small, large, 0.5).tolist() == [1, 3]
    assert jm.data.difference_sampling(small, large, 1e-9).tolist() == [3]
    documents = jm.data.Documents(np.arange(8), [2, 2, 2, 2])
    assert documents.take([1, 3]).ids.tolist() == [2, 3, 6, 7]


@pytest.mark.parametrize(
    ("small", "large", "keep", "message"),
    [
        ([], [], 0.5, "expected"),
        ([1.0], [1.0, 2.0], 0.5, "expected"),
        ([1.0, np.nan], [1.0, 2.0], 0.5, "small has a loss that is not finite, of text 1"),
        ([1.0], [1.0], 0.0, "keep is 0"),
        ([1.0], [1.0], 1.5, "keep is 1.5"),
    ],
)
def test_what_says_nothing_is_refused(small, large, keep, message):
    with pytest.raises(ValueError, match=message):
        jm.data.difference_sampling(small, large, keep)
