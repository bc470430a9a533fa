"""swap_words: the words whose swap a gradient says harms an answer most (Ebrahimi et al., 2018).

To first order the swap of token i for v changes the margin by (e_v − x_i) · ∂margin/∂x_i (HotFlip).
"""

import dataclasses

import numpy as np

from ..models.model import Model
from .input_margin import AskedText, InputMargin

_TRIED = 8
_STARTS = ("Ġ", "▁")  # of a token that begins a word, in BPE and in unigram vocabularies


@dataclasses.dataclass(frozen=True)
class WordSwaps:
    """The margin in nats `before` and `after` the swaps (old token, new token)."""

    before: float
    after: float
    swaps: tuple[tuple[str, str], ...]


def swap_words(margin: InputMargin, text: AskedText, *, swaps: int = 1) -> WordSwaps:
    """Swaps words that are one token for others that are one token, one after the other.

    The model whose margin it is chooses by its own gradient: of the eight swaps that should harm
    most to first order, the one that does. No word is swapped twice, and none if no swap harms.
    """
    words, table = whole_words(margin.model), margin.table()
    count = np.bincount(text.words[text.words >= 0], minlength=1)
    alone = lambda at: text.words[at] >= 0 and count[text.words[at]] == 1
    free = [at for at in np.flatnonzero(np.isin(text.ids[0], words)) if alone(at)]
    x, args, done = margin.vectors(text), margin.arguments(text), []
    before = after = float(margin.margin(x, *args))
    while free and len(done) < swaps:
        gradient = np.asarray(margin.gradient(x, *args), np.float32)[free]
        change = gradient @ table[words].T - (gradient * np.asarray(x)[free]).sum(1, keepdims=True)
        tried = []
        for best in np.argsort(change, axis=None, kind="stable")[:_TRIED]:
            which, new = np.unravel_index(best, change.shape)
            swapped = x.at[free[which]].set(table[words[new]])
            tried.append((float(margin.margin(swapped, *args)), which, new, swapped))
        least, which, new, swapped = min(tried, key=lambda swap: swap[0])
        if not least < after:
            break
        x, after, old = swapped, least, text.ids[0, free.pop(which)]
        name = lambda i: margin.model.tokenizer.decode([int(i)]).strip()
        done.append((name(old), name(words[new])))
    return WordSwaps(before, after, tuple(done))


def whole_words(model: Model) -> np.ndarray:
    """The ids of tokens that are words of two letters or more, (n,)."""
    vocabulary = model.tokenizer.get_vocab()
    marked = any(token.startswith(_STARTS) for token in vocabulary)
    found = []
    for token, i in vocabulary.items():
        word = token[1:] if marked and token.startswith(_STARTS) else "" if marked else token
        if len(word) > 1 and word.isalpha() and i < model.config.vocab:
            found.append(i)
    return np.array(sorted(found), np.int64)
