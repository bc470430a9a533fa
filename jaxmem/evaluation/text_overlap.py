"""text_score: how much of a reference a text has, by exact match, F1, ROUGE-L, chrF, BLEU or WER.

Exact match and F1 of words are as in SQuAD (Rajpurkar et al., 2016), ROUGE-L is the F-measure of
the longest common subsequence of words (Lin, 2004), without stemming. chrF (Popović, 2015) and BLEU
(Papineni et al., 2002) come from sacrebleu, WER from jiwer. All are from 0 to 1, but WER may be
above 1, and there less is better.
"""

import collections
import re
import string
from collections.abc import Sequence

_WORD = re.compile(r"[\u4e00-\u9fff\u3040-\u30ff\uac00-\ud7af]|[^\W_]+")


def text_score(metric: str, text: str, references: Sequence[str]) -> float:
    """The best score of a text over its references.

    Raises:
        ValueError: the metric is none of those above, or there is no reference.
        ImportError: "chrf" and "bleu" want sacrebleu, "wer" wants jiwer; names the extra.

    Example:
        >>> text_score("f1", "It is the cat.", ["a cat"]), text_score("rouge_l", "a b", ["a c b"])
        (0.5, 0.8)
    """
    if metric not in _SCORES:
        raise ValueError(f"the metric is {metric!r}, expected one of {', '.join(_SCORES)}")
    if not references:
        raise ValueError("there is no reference, expected at least one")
    if metric in ("chrf", "bleu"):  # they take all references at once
        return _SCORES[metric](text, references)
    best = min if metric == "wer" else max
    return best(_SCORES[metric](text, reference) for reference in references)


def _normal(text: str) -> str:
    """A text without case, punctuation and English articles."""
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _exact(text: str, reference: str) -> float:
    return float(_normal(text) == _normal(reference))


def _f1(text: str, reference: str) -> float:
    a, b = _normal(text).split(), _normal(reference).split()
    if not a or not b:
        return float(a == b)
    common = sum((collections.Counter(a) & collections.Counter(b)).values())
    return 2 * common / (len(a) + len(b))


def _rouge_l(text: str, reference: str) -> float:
    """2 · LCS / (words of both); a Chinese, Japanese or Korean sign is a word."""
    a, b = _WORD.findall(text.lower()), _WORD.findall(reference.lower())
    row = [0] * (len(b) + 1)
    for word in a:
        diagonal = 0
        for j, other in enumerate(b, 1):
            here = diagonal + 1 if word == other else max(row[j], row[j - 1])
            diagonal, row[j] = row[j], here
    return 2 * row[-1] / (len(a) + len(b)) if a and b else 0.0


def _chrf(text: str, references: Sequence[str]) -> float:
    return _sacrebleu().sentence_chrf(text, list(references)).score / 100


def _bleu(text: str, references: Sequence[str]) -> float:
    return _sacrebleu().sentence_bleu(text, list(references)).score / 100


def _sacrebleu():
    try:
        import sacrebleu
    except ImportError as error:
        raise ImportError('chrF and BLEU want sacrebleu: pip install "jaxmem[eval]"') from error
    return sacrebleu


def _wer(text: str, reference: str) -> float:
    try:
        import jiwer
    except ImportError as error:
        raise ImportError('WER wants jiwer: pip install "jaxmem[eval]"') from error
    return float(jiwer.wer(_normal(reference) or "-", _normal(text)))


_SCORES = {
    "exact_match": _exact,
    "f1": _f1,
    "rouge_l": _rouge_l,
    "chrf": _chrf,
    "bleu": _bleu,
    "wer": _wer,
}
