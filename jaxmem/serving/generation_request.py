"""GenerationRequest: one prompt, and how its answer is chosen."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..core.arguments import Kind, check_fields, shown
from ..models.sampling import Sampling

LARGEST_SEED = 2**31 - 1  # a seed travels to the device as an int32
_TEXTS = Kind("a string or a list of strings", lambda x: _all(x, str))
_MESSAGES = Kind("a list of messages, or None", lambda x: x is None or _all(x, Mapping))
_TOKENS = Kind("integers (tokens,), or None", lambda x: x is None or _are_integers(x))


@dataclasses.dataclass(frozen=True)
class GenerationRequest:
    """A prompt with a name, and how the tokens after it are chosen.

    Exactly one of `prompt`, `messages` and `ids` is given. The seed is folded with the number of
    each new token, so that no token depends on what else is answered at the same time.

    Args:
        id: the name of the request, by which its answer is found.
        prompt: a text that is continued.
        messages: `{"role": ..., "content": ...}` in turn, for the model's chat template.
        ids: token ids (tokens,).
        max_new_tokens: the most tokens of the answer.
        temperature: 0 takes the most probable token; above 0, a token is drawn from the softmax of
            logits / temperature.
        top_k: draw among this many most probable tokens.
        top_p: draw among the fewest tokens whose probabilities add up to this.
        min_p: draw among the tokens at least this many times as probable as the most probable one.
        repetition_penalty: logits of tokens that the prompt or the answer has are divided by this
            if they are positive, else multiplied by it (Keskar et al., 2019); 1 changes nothing.
        seed: the same seed draws the same tokens.
        stop: the answer ends before the first of these texts.
        logprobs: whether the answer has the natural logarithm of each token's probability, before
            temperature, penalty and cuts.

    Raises:
        ValueError: not exactly one prompt is given, or it is empty; an option is out of range.
        TypeError: a field is of another type.

    Example:
        >>> GenerationRequest("a", "Once upon a time", max_new_tokens=8, stop="The End").stop
        ('The End',)
    """

    id: str
    prompt: str | None = None
    _: dataclasses.KW_ONLY
    messages: Sequence[Mapping[str, Any]] | None = None
    ids: Sequence[int] | None = None
    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int = 0
    stop: str | Sequence[str] = ()
    logprobs: bool = False

    def __post_init__(self):
        check_fields(self, messages=_MESSAGES, ids=_TOKENS, stop=_TEXTS)
        put = lambda name, value: object.__setattr__(self, name, value)  # hashable, and not shared
        put("stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        if self.ids is not None:
            put("ids", tuple(np.asarray(self.ids).tolist()))
        if self.messages is not None:
            put("messages", tuple(self.messages))
        given = [n for n in ("prompt", "messages", "ids") if getattr(self, n) is not None]
        if len(given) != 1:
            names = " and ".join(given) or "none of them"
            raise ValueError(f"{names} given, expected one of prompt, messages and ids")
        if not len(getattr(self, given[0])):
            raise ValueError(f"{given[0]} is empty, expected at least one token")
        Sampling(self.temperature, self.top_k, self.top_p, self.min_p)  # checks them
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}, expected at least 1")
        if not 0 < self.repetition_penalty < math.inf:
            penalty = self.repetition_penalty
            raise ValueError(f"repetition_penalty is {penalty}, expected above 0, and finite")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise ValueError(f"seed is {self.seed}, expected at least 0 and at most {LARGEST_SEED}")
        if "" in self.stop:
            raise ValueError(f"stop is {shown(self.stop)}, expected texts that are not empty")


def _all(x: Any, kind: type) -> bool:
    """Whether `x` is a list or tuple whose members are of a kind; or one text, of texts."""
    is_list = isinstance(x, list | tuple) and all(isinstance(member, kind) for member in x)
    return is_list or (kind is str and isinstance(x, str))


def _are_integers(x: Any) -> bool:
    """Whether `x` is an array or a sequence (tokens,) of integers, or empty."""
    if isinstance(x, str | bytes) or not (isinstance(x, Sequence) or hasattr(x, "dtype")):
        return False
    try:
        row = np.asarray(x)
    except ValueError:  # rows of several lengths
        return False
    return row.ndim == 1 and (not row.size or np.issubdtype(row.dtype, np.integer))
