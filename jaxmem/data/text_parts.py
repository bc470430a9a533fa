"""encoded: a text of parts as token ids, and which of them are learnt."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

_PIECE = 1 << 20  # characters that are encoded together, up to the end of a line


@dataclasses.dataclass(frozen=True)
class TextParts:
    """Parts of one document in turn, each (text, whether it is learnt), and where it stands."""

    parts: list[tuple[str, bool]]
    place: str
    bare: bool = True  # whether no chat template has written what stands around it


def encoded(
    text: TextParts, encode: Callable, begin: Sequence[int], end: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """The ids and the mask of a text, between `begin` and `end` if it is bare.

    Raises:
        ValueError: nothing is learnt of it, or it has half of a surrogate pair.

    Example:
        >>> text = TextParts([("1+1=", False), ("2", True)], "here")
        >>> ids, mask = encoded(text, lambda text: list(text.encode()), [], [0])
        >>> ids.tolist(), mask.astype(int).tolist()
        ([49, 43, 49, 61, 50, 0], [0, 0, 0, 0, 1, 1])
    """
    for part, _ in text.parts:
        try:
            part.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{text.place}: it has half of a surrogate pair: {error}") from error
    first, last = (begin, end) if text.bare else ((), ())
    learnt = [is_learnt for _, is_learnt in text.parts]
    all_ids = [first, *_ids_of_parts([part for part, _ in text.parts], encode), last]
    arrays = [np.asarray(x, np.int32).reshape(-1) for x in all_ids]
    flags = [False, *learnt, learnt[-1]]
    mask = np.concatenate([np.full(len(x), flag) for x, flag in zip(arrays, flags)])
    if not mask[1:].any():
        raise ValueError(
            f"{text.place}: nothing is learnt of it: expected tokens after the first that are "
            "neither a prompt nor another role's than the assistant's"
        )
    return np.concatenate(arrays), mask


def _ids_of_parts(parts: list[str], encode: Callable) -> Iterator[Sequence[int]]:
    """The ids of each part, as they are after the part before it.

    Some tokenizers, such as SentencePiece's, write the first word of a text as after a space. A
    part whose first letters would be in one token with the last of the part before is encoded by
    itself, as a prompt is that a model answers.
    """
    before, known = "", []
    for part in parts:
        ids = [i for piece in _pieces(part) for i in encode(piece)]
        new = ids
        if known and ids and len(before) + len(part) <= _PIECE:
            both = list(encode(before + part))
            new = both[len(known) :] if both[: len(known)] == known else ids
        yield new
        if part:
            before, known = part, ids


def _pieces(text: str) -> Iterator[str]:
    """A long text in pieces of whole lines, as a tokenizer takes much memory for a long one."""
    at = 0
    while len(text) - at > _PIECE:
        stop = text.find("\n", at + _PIECE)
        stop = len(text) if stop < 0 else stop + 1
        yield text[at:stop]
        at = stop
    if at < len(text):
        yield text[at:]
