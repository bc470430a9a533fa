"""The vocabulary in a tiktoken file: in each line the bytes of a token in base64, and its rank."""

import base64
import itertools
import pathlib
from typing import TYPE_CHECKING

from . import tokenizers

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def is_tiktoken(path: pathlib.Path) -> bool:
    """Whether the first line of a file is one of tiktoken's."""
    with path.open("rb") as file:
        parts = file.readline(1024).split()
    return len(parts) == 2 and parts[1].isdigit()


def from_tiktoken(path: pathlib.Path, pre: str) -> "Tokenizer":
    """The byte-level BPE of a tiktoken file; `pre` is llama.cpp's name for the split of text.

    A file has no special tokens. Two parts merge in the order of the rank of what they make.

    Raises:
        ValueError: the file is damaged.
        ImportError: the `tokenizers` package is missing.
    """
    ranks, letters = {}, tokenizers.byte_letters()
    try:
        for line in path.read_bytes().splitlines():
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
    except ValueError as error:
        raise ValueError(f"{path} is no file of tiktoken: {error}") from error
    text = lambda token: "".join(letters[byte] for byte in token)
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        parts = _parts(token, ranks, rank)
        if len(parts) == 2:
            merges.append(tuple(map(text, parts)))
    vocabulary = {text(token): rank for token, rank in ranks.items()}
    return tokenizers.byte_level(vocabulary, merges, pre, whole_words=True)


def _parts(token: bytes, ranks: dict[bytes, int], below: int) -> list[bytes]:
    """The tokens that a token is made of by merges whose rank is below its own.

    Example:
        >>> _parts(b"abc", {b"a": 0, b"b": 1, b"c": 2, b"ab": 3, b"abc": 4}, 4)
        [b'ab', b'c']
    """
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 1:
        found = [ranks.get(a + b, below) for a, b in itertools.pairwise(parts)]
        least = min(found)
        if least >= below:
            break
        at = found.index(least)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts
