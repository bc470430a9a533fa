"""Documents: texts as token ids, and which of their tokens are to be learnt."""

import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..core.arguments import ROW_OF_INTEGERS, Kind, shown, takes
from ..io.atomic import replacing
from .token_store import Tokens
from .token_writer import write

_IDS, _MASK, _LENGTHS = "ids.tokens", "mask.tokens", "lengths.npy"


_TOKENS = Kind("an array (n,) or Tokens", lambda x: hasattr(x, "dtype") or isinstance(x, Tokens))


class Documents(Sequence):
    """Texts: `documents[i]` is {"ids": (n,) i32, "mask": (n,) bool}, and `lengths` their lengths.

    A token is learnt where `mask` is true. It is a `RandomAccessDataSource` of grain.

    Args:
        ids: the tokens of all documents, one after the other: an array (n,) or `Tokens`.
        lengths: tokens of each document.
        mask: which tokens are learnt (n,): 0 or 1, an array or `Tokens`; None for all of them.

    Raises:
        ValueError: the lengths do not sum to the number of tokens, or one is not positive.

    Example:
        >>> import numpy as np
        >>> import jaxmem as jm
        >>> documents = jm.data.Documents(np.arange(5), [2, 3])
        >>> documents[1]["ids"].tolist(), documents.lengths.tolist()
        ([2, 3, 4], [2, 3])
    """

    @takes(ids=_TOKENS, lengths=ROW_OF_INTEGERS, mask=_TOKENS)
    def __init__(self, ids: Any, lengths: Any, mask: Any = None):
        flags = mask if mask is None or isinstance(mask, Tokens) else _flags(mask)
        self.ids, self.mask = ids, flags
        self.lengths = np.asarray(lengths).astype(np.int64)
        self._ends = np.cumsum(self.lengths)
        total = int(self._ends[-1]) if len(self.lengths) else 0
        if self.lengths.ndim != 1 or (self.lengths < 1).any():
            raise ValueError(
                "lengths have a document without tokens, expected at least one in each"
            )
        for name, x in (("ids", ids), ("mask", mask)):
            if x is not None and len(x) != total:
                raise ValueError(f"documents have {total} tokens, and {name} {len(x)}")

    def __len__(self) -> int:
        return len(self.lengths)

    def __repr__(self) -> str:
        return f"Documents: {len(self)} of {len(self.ids)} tokens"

    def __getitem__(self, at: Any) -> dict[str, np.ndarray]:
        at = range(len(self))[at]
        return self.piece(at, 0, int(self.lengths[at]))

    def piece(self, document: int, start: int, size: int) -> dict[str, np.ndarray]:
        """`size` tokens of a document from its token `start` on, as an item has them."""
        first = int(self._ends[document] - self.lengths[document]) + start
        ids = np.asarray(self.ids[first : first + size], np.int32)
        mask = None if self.mask is None else self.mask[first : first + size]
        return {"ids": ids, "mask": np.ones(size, bool) if mask is None else np.asarray(mask, bool)}

    def take(self, indices: Sequence[int] | np.ndarray) -> "Documents":
        """The documents at `indices`, in memory and in this order.

        Example:
            >>> import numpy as np
            >>> import jaxmem as jm
            >>> jm.data.Documents(np.arange(6), [2, 3, 1]).take([2, 0]).ids.tolist()
            [5, 0, 1]
        """
        items = [self[int(i)] for i in indices]
        masks = None if self.mask is None else [item["mask"] for item in items]
        return from_arrays([item["ids"] for item in items], masks)

    def save(self, folder: str | os.PathLike, *, method: str = "deflate") -> None:
        """Writes token stores to a folder that `Documents.open` reads; it appears whole or not.

        Raises:
            ValueError, ImportError: as `write`.
        """
        with replacing(pathlib.Path(folder), replace_directory=True) as temporary:
            write(temporary / _IDS, self.ids, method=method)
            if self.mask is not None:
                mask = self.mask if isinstance(self.mask, Tokens) else self.mask.view(np.uint8)
                write(temporary / _MASK, mask, method=method)
            np.save(temporary / _LENGTHS, self.lengths, allow_pickle=False)

    @classmethod
    def open(cls, folder: str | os.PathLike) -> "Documents":
        """The documents of a folder. Tokens stay on the disk until they are read.

        Raises:
            ValueError: a file is damaged, or the files are not of the same documents.
            OSError: the folder cannot be read.
        """
        folder = pathlib.Path(folder)
        try:
            lengths = np.load(folder / _LENGTHS, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"{folder / _LENGTHS}: it is damaged: {error}") from error
        mask = Tokens(folder / _MASK) if (folder / _MASK).exists() else None
        try:
            return cls(Tokens(folder / _IDS), lengths, mask)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from error


def _flags(mask: Any) -> np.ndarray:
    """The mask as an array of bool, which is not copied if it is one."""
    return np.asarray(mask).astype(bool, copy=False)


def from_arrays(
    ids: Iterable[Sequence[int]], masks: Iterable[Sequence[bool]] | None = None
) -> Documents:
    """Documents in memory, of the ids of each and, if given, of their masks.

    Raises:
        ValueError: a document is empty, or its mask has another length.
        TypeError: a document is no integers (n,).
    """
    ids = list(ids)
    for i, x in enumerate(ids):
        if not ROW_OF_INTEGERS.accepts(x):
            raise TypeError(f"documents have {shown(x)} as number {i}, expected token ids (n,)")
    arrays = [np.asarray(x, np.int32) for x in ids]
    lengths = [len(x) for x in arrays]
    flat = np.concatenate([np.empty(0, np.int32), *arrays])
    if masks is None:
        return Documents(flat, lengths)
    kept = [np.asarray(x, bool).reshape(-1) for x in masks]
    if [len(x) for x in kept] != lengths:
        raise ValueError("a mask has another length than its document")
    return Documents(flat, lengths, np.concatenate([np.empty(0, bool), *kept]))
