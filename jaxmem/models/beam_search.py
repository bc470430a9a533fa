"""Beam search: the most probable texts, found by extending several at a time."""

import dataclasses
import functools
import math
from collections.abc import Callable, Collection

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ..core.arguments import check_fields
from .next_token_logits import Reader

_IMPOSSIBLE = -1e9  # the score of beams that repeat the first one


@dataclasses.dataclass(frozen=True)
class BeamSearch:
    """How `generate` searches for the most probable text (Graves, 2012; Wu et al., 2016).

    Attributes:
        beams: texts that are extended at a time.
        length_penalty: the score of a text is its log probability / length ** this; above 0, it is
            in favour of longer ones.
        early_stopping: True ends when there are `beams` whole texts. False ends, too, when the best
            unfinished one cannot become better than they are at its present length. "never" ends
            when it cannot at any length.

    Example:
        >>> import jaxmem as jm
        >>> jm.models.BeamSearch(4, length_penalty=2.0).beams
        4

    Raises:
        ValueError: a value is out of range.
        TypeError: a field has another type.
    """

    beams: int
    length_penalty: float = 1.0
    early_stopping: bool | str = False

    def __post_init__(self):
        check_fields(self)
        if self.beams < 1:
            raise ValueError(f"beams is {self.beams!r}, expected an integer of at least 1")
        if not math.isfinite(self.length_penalty):
            raise ValueError(f"length_penalty is {self.length_penalty}, expected a finite number")
        if self.early_stopping not in (True, False, "never"):
            raise ValueError(
                f"early_stopping is {self.early_stopping!r}, expected True, False or 'never'"
            )


def search_beams(
    read: Reader,
    first: np.ndarray,
    search: BeamSearch,
    *,
    max_new_tokens: int,
    forced: int,
    eos: Collection[int],
    banned: Callable[[int], np.ndarray | None],
) -> list[tuple[int, ...]]:
    """The tokens of the best text of each prompt, an end token included.

    Args:
        read: gives logits of rows: `search.beams` for each prompt, one prompt after the other.
        first: the tokens (batch, n) that are read first.
        search: the options.
        max_new_tokens: the most tokens of a text.
        forced: the last tokens of `first` that count in the length of a text.
        eos: the tokens that end a text.
        banned: banned(i) is where (vocab,) a token cannot be token i of a text; None for nowhere.
    """
    beams, prompts = search.beams, [_Prompt(search) for _ in first]
    keep = beams * max(2, 1 + len(eos))  # so that `beams` of them do not end
    tokens, position, rows = np.repeat(first, beams, axis=0), 0, None
    for i in range(max_new_tokens):
        scores = np.array([[score for score, _ in prompt.running] for prompt in prompts])
        logits = read(tokens, position, rows)
        best = _best(logits, scores.astype(np.float32), banned(i), keep=keep)
        length, most = forced + i + 1, forced + max_new_tokens
        which = [
            prompt.extend(extensions, length, most, eos)
            for prompt, extensions in zip(prompts, zip(*map(np.asarray, best)))
        ]
        if length == most or not any(prompt.is_open for prompt in prompts):
            break
        if search.early_stopping is True and all(len(x.whole) == beams for x in prompts):
            break
        rows = np.concatenate([np.array(x) + b * beams for b, x in enumerate(which)])
        position += tokens.shape[1]
        tokens = np.array([[text[-1]] for x in prompts for _, text in x.running], np.int32)
    return [prompt.whole[0][1] for prompt in prompts]


class _Prompt:
    """The texts found for one prompt, with their scores: `whole` ones, best first, and `running`.

    The score of a running text is its log probability. A prompt is open while a better text than
    the whole ones can be found.
    """

    def __init__(self, search: BeamSearch):
        self.search, self.is_open = search, True
        self.whole: list[tuple[float, tuple[int, ...]]] = []
        self.running = [(0.0, ()), *[(_IMPOSSIBLE, ())] * (search.beams - 1)]

    def extend(self, extensions: tuple, length: int, most: int, eos: Collection[int]) -> list[int]:
        """Takes the best extensions; returns which beam each of the texts that go on has extended.

        `extensions` are scores, beams and tokens, best first. The texts reach `length` tokens, and
        none goes on after `most`.
        """
        beams, going, texts = self.search.beams, [], self.running
        is_full = self.search.early_stopping is True and len(self.whole) == beams
        self.running = []
        for i, (score, beam, token) in enumerate(zip(*extensions)):
            text = (*texts[beam][1], int(token))
            if token not in eos and length < most:
                self.running.append((score, text))
                going.append(int(beam))
            elif i < beams and self.is_open and not is_full:
                self.whole.append((self._of_length(score, length), text))
        self.running, going = self.running[:beams], going[:beams]
        self.whole = sorted(self.whole, key=lambda x: -x[0])[:beams]
        if self.running and len(self.whole) == beams:
            farthest = self.search.early_stopping == "never" and self.search.length_penalty > 0
            possible = self._of_length(self.running[0][0], most if farthest else length)
            self.is_open = self.is_open and possible > self.whole[-1][0]
        return going

    def _of_length(self, score: float, length: int) -> float:
        """The score of a text with a log probability."""
        return float(score) / length**self.search.length_penalty


@functools.partial(jax.jit, static_argnames="keep")
def _best(
    logits: Array, scores: Array, banned: Array | None, *, keep: int
) -> tuple[Array, Array, Array]:
    """The `keep` best extensions of each prompt: (their scores, their beams, their tokens).

    Shapes: logits (batch * beams, vocab), scores (batch, beams), each result (batch, keep).
    """
    vocab = logits.shape[-1]
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    if banned is not None:
        log_probabilities = jnp.where(banned[None], -jnp.inf, log_probabilities)
    total = log_probabilities.reshape(*scores.shape, vocab) + scores[..., None]
    total = total.reshape(len(scores), -1)
    best, index = lax.top_k(total, min(keep, total.shape[1]))
    return best, index // vocab, index % vocab
