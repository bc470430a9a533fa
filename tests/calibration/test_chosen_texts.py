"""Few texts are chosen that say as much as many, and several texts are mixed in equal shares."""

import numpy as np
import pytest

from jaxmem.calibration import choose_texts, mix_texts


def test_the_texts_that_add_most_to_the_determinant_are_chosen_first():
    draw = np.random.default_rng(0)
    axes = np.eye(6)
    texts = [draw.normal(size=(20, 1)) @ axes[[i % 3]] for i in range(9)]  # three directions
    texts.append(0.5 * draw.normal(size=(20, 1)) @ axes[[4]])
    moments = lambda x: x.T @ x / len(x)
    chosen = choose_texts(texts, 4, moments=moments)
    assert {i % 3 for i in chosen if i < 9} == {0, 1, 2} and 9 in chosen
    grams = np.stack([moments(x) for x in texts])
    logdet = lambda few: np.linalg.slogdet(grams[few].sum(0) + 1e-3 * np.eye(6))[1]
    others = [logdet(draw.permutation(10)[:4]) for _ in range(50)]
    assert logdet(chosen) >= np.quantile(others, 0.9)


def test_stacked_moments_are_of_several_weights():
    texts = [np.stack([np.eye(3) * a, np.eye(3) * b]) for a, b in [(1, 1), (9, 0.1), (3, 3)]]
    assert choose_texts(texts, 2, moments=lambda x: x) == [2, 1]


def test_the_texts_on_which_models_differ_most_are_chosen():
    assert choose_texts([0.1, 0.3, 0.2], 2, disagreement=float) == [1, 2]


@pytest.mark.parametrize(
    ("n", "options", "message"),
    [
        (1, {}, "either moments or disagreement"),
        (3, {"disagreement": float}, "n is 3 of 2 texts"),
        (1, {"moments": np.atleast_2d}, r"shape \(1, 2\), expected"),
        (1, {"disagreement": lambda x: np.nan}, "what text 0 gives is not finite"),
    ],
)
def test_what_cannot_be_chosen_by_is_said(n, options, message):
    with pytest.raises(ValueError, match=message):
        choose_texts([np.ones(2), np.ones(2)], n, **options)


def test_texts_take_turns_and_the_shortest_says_how_many():
    ids, shares = mix_texts({"a": np.arange(9), "b": np.arange(100, 105)}, 2)
    assert ids.tolist() == [0, 1, 100, 101, 2, 3, 102, 103] and shares == {"a": 4, "b": 4}
    with pytest.raises(ValueError, match=r"b has shape \(1,\)"):
        mix_texts({"a": np.arange(9), "b": np.arange(1)}, 2)
    with pytest.raises(ValueError, match="0 texts"):
        mix_texts({}, 2)
