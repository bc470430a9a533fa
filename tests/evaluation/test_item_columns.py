"""The columns of per-item scores are what their formulas say."""

import math

import numpy as np
import pytest
import scipy.stats

from jaxmem.evaluation import answer_flips, calibration_of, group_gaps
from jaxmem.evaluation.paired_answers import mcnemar
from jaxmem.evaluation.probe import Probe
from jaxmem.evaluation.ranking_scores import ndcg, overlap
from jaxmem.evaluation.text_overlap import text_score


def items(seed, n=200, choices=4, noise=1.0):
    """Scored items of a model whose logits are those of seed 0, with noise."""
    logits = np.random.default_rng(0).normal(size=(n, choices)) * 2
    drawn = np.random.default_rng(1).random((n, 1))
    right = (soft(logits).cumsum(1) < drawn).sum(1)
    logits = logits + noise * (seed > 0) * np.random.default_rng(seed).normal(size=logits.shape)
    return [
        {"item": i, "logprobs": x.tolist(), "right": int(r), "answer": int(x.argmax()),
         "score": float(x.argmax() == r), "group": "ab"[i % 2]}
        for i, (x, r) in enumerate(zip(logits, right))
    ]  # fmt: skip


def soft(x):
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def test_flips_are_counted_both_ways():
    before, after = items(0), items(1)
    flips = answer_flips(before, after)
    was, now = (np.array([x["score"] for x in both]) for both in (before, after))
    assert flips.right_to_wrong == ((was == 1) & (now == 0)).sum() > 5
    assert flips.wrong_to_right == ((was == 0) & (now == 1)).sum() > 5
    assert flips.difference.mean == pytest.approx((now - was).mean())
    p, q = (soft(np.array([x["logprobs"] for x in both])) for both in (before, after))
    assert flips.total_variation == pytest.approx(np.abs(p - q).sum(1).mean() / 2)
    assert flips.changed == np.mean(p.argmax(1) != q.argmax(1))


def test_a_model_beside_itself_differs_in_nothing():
    flips = answer_flips(items(1), items(1))
    assert (flips.changed, flips.right_to_wrong, flips.wrong_to_right) == (0, 0, 0)
    assert (flips.total_variation, flips.p_value, flips.difference.mean) == (0, 1, 0)
    gaps = group_gaps(items(1), items(1))
    assert gaps.gap == gaps.changed == 0


@pytest.mark.parametrize(("a", "b"), [(0, 0), (0, 1), (3, 3), (9, 2), (79, 24)])
def test_mcnemar_is_the_exact_binomial_test(a, b):
    exact = scipy.stats.binomtest(a, a + b, 0.5).pvalue if a + b else 1.0
    assert mcnemar(a, b) == pytest.approx(exact)


def test_a_calibrated_model_has_a_small_error_and_a_louder_one_is_cooled_back():
    n = 3000
    scored = items(0, n)
    found = calibration_of(scored)
    loud = calibration_of([x | {"logprobs": [2 * v for v in x["logprobs"]]} for x in scored])
    assert found.ece < 0.03 < loud.ece and found.brier < loud.brier
    assert found.temperature == pytest.approx(1, abs=0.1)
    assert loud.temperature == pytest.approx(2 * found.temperature, rel=1e-3)
    assert loud.refit_ece == pytest.approx(found.refit_ece, abs=0.005)


def test_the_error_of_two_bins_by_hand():
    p = [[0.75, 0.25], [0.75, 0.25], [0.95, 0.05]]
    scored = [{"logprobs": np.log(q).tolist(), "right": r} for q, r in zip(p, (0, 1, 0))]
    found = calibration_of(scored)
    assert found.ece == pytest.approx((abs(1 - 1.5) + 0.05) / 3)
    assert found.brier == pytest.approx((2 * 0.25**2 + 2 * 0.75**2 + 2 * 0.05**2) / 3)
    assert found.nll == pytest.approx(-np.mean(np.log([0.75, 0.25, 0.95])))


def test_the_worst_group_is_the_one_that_changed_most():
    before = items(0)
    after = [x | {"answer": -1} if x["group"] == "b" and x["item"] < 50 else x for x in before]
    gaps = group_gaps([*before, before[0] | {"group": "c"}], [*after, after[0] | {"group": "c"}])
    assert gaps.worst == "b" and gaps.small == 1 and set(gaps.groups) == {"a", "b"}
    assert gaps.gap == pytest.approx(25 / 100 - 25 / 201)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: answer_flips([], []), "no items"),
        (lambda: answer_flips(items(0, 3), items(0, 4)), "3 and 4 items are not the same"),
        (lambda: calibration_of([{"item": 0}]), "1 items"),
        (lambda: group_gaps(items(0, 4), items(0, 4)), "no group has 5 items"),
        (lambda: group_gaps([{"item": 0}], [{"item": 0}]), "no group"),
        (lambda: ndcg(["a"], {"a": 0.0}), "one above 0"),
        (lambda: overlap([], []), "empty"),
        (lambda: text_score("bert", "a", ["b"]), "metric is 'bert'"),
        (lambda: text_score("f1", "a", []), "no reference"),
        (lambda: Probe.fit(np.ones((2, 1)), [1, 1]), "expected two classes"),
    ],
)
def test_what_has_no_score_is_said(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_ndcg_is_the_textbook_one():
    gains = {"a": 3.0, "b": 2.0, "c": 1.0}
    best = 3 + 2 / math.log2(3) + 1 / 2
    assert ndcg(["x", "a", "b"], gains) == pytest.approx((3 / math.log2(3) + 2 / 2) / best)
    assert ndcg(["a", "b", "c"], gains) == 1 and ndcg(["x"], gains) == 0


# from rouge-score 0.1.2 (no stemmer), fmeasure
@pytest.mark.parametrize(
    ("text", "reference", "rouge"),
    [
        ("the cat sat on the mat", "the cat is on the mat", 0.8333333333333334),
        ("A man, a plan; a canal.", "a canal and a man", 0.36363636363636365),
        ("hello there", "general kenobi", 0.0),
        ("one two three four", "four three two one zero", 0.2222222222222222),
    ],
)
def test_rouge_l_is_that_of_the_reference_package(text, reference, rouge):
    assert text_score("rouge_l", text, [reference]) == pytest.approx(rouge)


def test_words_are_compared_without_case_articles_and_punctuation():
    assert text_score("exact_match", "The Eiffel Tower!", ["x", "eiffel tower"]) == 1
    assert text_score("f1", "in the city of Paris", ["Paris city"]) == pytest.approx(2 * 2 / 6)
    assert text_score("rouge_l", "我爱你", ["我恨你"]) == pytest.approx(2 / 3)


def test_a_probe_separates_what_can_be_separated():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 150).tolist()
    x = np.eye(3)[labels] * 3 + rng.normal(size=(150, 3)) * 0.3
    probe = Probe.fit(x, labels)
    logprobs = probe.logprobs(x)
    with pytest.raises(ValueError, match=f"vectors have 1 numbers, the probe wants {x.shape[1]}"):
        probe.logprobs(x[:, :1])
    assert (logprobs.argmax(1) == labels).mean() > 0.98
    assert np.exp(logprobs).sum(1) == pytest.approx(np.ones(150))
