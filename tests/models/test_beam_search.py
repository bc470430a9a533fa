"""Beam search finds the most probable text; tests/architectures/test_seq2seq.py has references."""

import itertools

import numpy as np
import pytest

from jaxmem.models import BeamSearch
from jaxmem.models.beam_search import search_beams

VOCAB, END, LONGEST = 4, 3, 3
LOGITS = np.random.default_rng(0).standard_normal((VOCAB, VOCAB))  # by the last token
LOG_SHARES = LOGITS - np.log(np.exp(LOGITS).sum(-1, keepdims=True))


def read(tokens, position, rows=None):
    return LOGITS[tokens[:, -1]].astype(np.float32)


def best_of_all(first, search, banned):
    """The best text by its score, of all texts."""
    texts = itertools.product(range(VOCAB), repeat=LONGEST)
    texts = {t[: t.index(END) + 1] if END in t else t for t in texts if banned not in t}
    score = lambda t: sum(LOG_SHARES[a, b] for a, b in zip((first, *t), t))
    return max(texts, key=lambda t: score(t) / len(t) ** search.length_penalty)


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("banned", [None, 1])
def test_with_enough_beams_the_best_of_all_texts_is_found(penalty, banned):
    search = BeamSearch(VOCAB**LONGEST, penalty, "never")
    first = np.array([[0, 2], [2, 0]], np.int32)
    mask = None if banned is None else np.arange(VOCAB) == banned
    options = dict(max_new_tokens=LONGEST, forced=0, eos=(END,), banned=lambda i: mask)
    texts = search_beams(read, first, search, **options)
    assert texts == [best_of_all(2, search, banned), best_of_all(0, search, banned)]


@pytest.mark.parametrize("change", [{"beams": 0}, {"length_penalty": float("nan")},
    {"early_stopping": "soon"}])  # fmt: skip
def test_an_option_out_of_range_is_refused_by_name(change):
    with pytest.raises(ValueError, match=f"^{next(iter(change))} is "):
        BeamSearch(**{"beams": 2} | change)
