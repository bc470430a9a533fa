"""chrF, BLEU and WER are those of sacrebleu and jiwer, as shares of 1."""

import pytest

pytest.importorskip("jiwer", reason='wants jiwer: pip install "jaxmem[eval]"')

from jaxmem.evaluation.text_overlap import text_score

TEXT = "one two three four five"


@pytest.mark.parametrize("metric", ["chrf", "bleu"])
def test_a_text_that_is_one_of_its_references_scores_one_and_another_less(metric):
    assert text_score(metric, TEXT, ["nothing of it", TEXT]) == pytest.approx(1)
    assert text_score(metric, "one two three four six", [TEXT]) < 1
    assert text_score(metric, "zzz", [TEXT]) == pytest.approx(0)


def test_the_word_error_rate_counts_changed_words_of_the_nearest_reference():
    assert text_score("wer", "one two three six five", [TEXT, "no"]) == pytest.approx(1 / 5)
    assert text_score("wer", "One, two three four five.", [TEXT]) == 0
