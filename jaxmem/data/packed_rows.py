"""Rows of packed documents, in an order that is shuffled and resumes."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..core.arguments import POSITIVE, Kind, takes
from .best_fit import Packing, pack
from .documents import Documents, from_arrays

_SEQUENCE = Kind(
    "a sequence, with a length and items",
    lambda x: hasattr(x, "__len__") and hasattr(x, "__getitem__") and not isinstance(x, str | dict),
)
_SHARD = Kind(
    "a pair of integers, such as (0, 1)",
    lambda x: isinstance(x, tuple) and len(x) == 2 and all(isinstance(n, int) for n in x),
)
FIELDS = ("ids", "segments", "positions", "mask")


class PackedRows(Sequence):
    """Documents packed into rows: `rows[r]` is a dict of "ids", "segments", "positions", "mask".

    Each is (width,) i32, and "mask" bool. "segments" counts the documents of a row from 1, and is 0
    on padding. "positions" count a document's tokens from 0. "mask" is true where a token is to be
    predicted: not on padding, on what the document hides, nor on the first token of a segment, as
    nothing of its own text stands before it. It is a `RandomAccessDataSource` of grain.

    Args:
        documents: `Documents`, or any sequence of token ids, such as a `MapDataset` of grain.
        width: tokens of a row.
        longer: "refuse" or "split" what is longer than a row, as `pack` does. A piece of which
            nothing is learnt is left out.
        seed: by which documents of one length come in another order, so that rows mix them.

    Raises:
        ValueError: as `pack`; or nothing is learnt of a document.

    Example:
        >>> import jaxmem as jm
        >>> rows = jm.data.PackedRows([[5, 6, 7], [8, 9]], 8)
        >>> {name: x.astype(int).tolist() for name, x in rows[0].items()}["segments"]
        [1, 1, 1, 2, 2, 0, 0, 0]
        >>> rows[0]["mask"].astype(int).tolist(), rows.waste
        ([0, 1, 1, 0, 1, 0, 0, 0], 0.375)
    """

    @takes(documents=_SEQUENCE, width=POSITIVE)
    def __init__(self, documents: Any, width: int, *, longer: str = "refuse", seed: int = 0):
        self.documents = documents if isinstance(documents, Documents) else _read(documents)
        order = np.random.default_rng(seed).permutation(len(self.documents))
        packing = pack(self.documents.lengths[order], width, longer=longer)
        self.packing = dataclasses.replace(packing, sequence=order[packing.sequence])
        self.width = width
        if self.documents.mask is not None:
            self.packing = self._learnt(self.packing, longer)

    @property
    def waste(self) -> float:
        """The share of all places that is padding."""
        return self.packing.waste

    def __len__(self) -> int:
        return len(self.packing)

    def __getitem__(self, at: Any) -> dict[str, np.ndarray]:
        out = {name: np.zeros(self.width, np.int32) for name in FIELDS[:3]}
        out["mask"], place = np.zeros(self.width, bool), 0
        for i, (document, start, size) in enumerate(self.packing.row(range(len(self))[at])):
            here, piece = slice(place, place + size), self.documents.piece(document, start, size)
            out["ids"][here], out["mask"][here] = piece["ids"], piece["mask"]
            out["segments"][here], out["positions"][here] = i + 1, np.arange(size)
            out["mask"][place] = False
            place += size
        return out

    def _learnt(self, packing: Packing, longer: str) -> Packing:
        """The packing without pieces of which nothing is learnt."""
        pieces = zip(packing.sequence.tolist(), packing.start.tolist(), packing.size.tolist())
        kept = np.array([self.documents.piece(*piece)["mask"][1:].any() for piece in pieces])
        counts = np.bincount(packing.sequence, kept, minlength=len(self.documents))
        if (counts == 0).any():
            raise ValueError(
                f"nothing is learnt of document {int((counts == 0).argmax())}: its mask hides all "
                f"tokens after the first; leave it out"
            )
        if kept.all():
            return packing
        rows = np.repeat(np.arange(len(packing)), np.diff(packing.row_starts))[kept]
        starts = np.cumsum(np.bincount(rows, minlength=len(packing)))
        starts = np.unique(np.concatenate([[0], starts]))  # rows of nothing go
        fields = (packing.sequence[kept], packing.start[kept], packing.size[kept])
        return Packing(packing.width, *fields, starts)


class Batches:
    """An endless iterator of batches of rows, shuffled in each epoch; it resumes from `state()`.

    Rows that do not fill the last batch of an epoch are left out of it: as each epoch has another
    order, they come in others.

    Args:
        rows: a sequence of dicts of arrays, such as `PackedRows` or a `MapDataset` of grain.
        batch: rows in a batch.
        seed: of the order.
        shuffle: False for the order of `rows`.
        shard: (i, n), where this process is the i-th of n and reads only its rows of each batch;
            `batch` counts the rows of all of them, and n divides it.

    Raises:
        ValueError: there are fewer rows than a batch takes, or n does not divide `batch`.

    Example:
        >>> import jaxmem as jm
        >>> rows = jm.data.PackedRows([[i, i] for i in range(10)], 2)
        >>> stream = jm.data.Batches(rows, 3, seed=1)
        >>> _ = next(stream)
        >>> state = stream.state()
        >>> uninterrupted = [next(stream)["ids"][:, 0].tolist() for _ in range(4)]
        >>> resumed = jm.data.Batches(rows, 3, seed=1)
        >>> resumed.restore(state)
        >>> [next(resumed)["ids"][:, 0].tolist() for _ in range(4)] == uninterrupted
        True
    """

    @takes(rows=_SEQUENCE, batch=POSITIVE, shard=_SHARD)
    def __init__(
        self,
        rows: Sequence[dict[str, np.ndarray]],
        batch: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        shard: tuple[int, int] = (0, 1),
    ):
        place, count = shard
        if batch < 1 or not 0 <= place < count or batch % count:
            raise ValueError(f"batch {batch} in shard {place} of {count}: expected a multiple")
        if len(rows) < batch:
            raise ValueError(
                f"there are {len(rows)} rows, and a batch takes {batch}: add data or take fewer"
            )
        self.rows, self.batch, self.shuffle, self.shard = rows, batch, shuffle, shard
        self._seed, self._step, self._epoch_order = seed, 0, (-1, np.empty(0, np.int64))

    @property
    def steps_per_epoch(self) -> int:
        """Batches until rows come again."""
        return len(self.rows) // self.batch

    def state(self) -> dict[str, int]:
        """Where the iterator is, as a few integers, which JSON can hold."""
        return {
            "step": self._step,
            "seed": self._seed,
            "rows": len(self.rows),
            "batch": self.batch,
            "shuffle": int(self.shuffle),
        }

    def restore(self, state: dict[str, int]) -> None:
        """Goes on where `state` was taken; the order is that of an uninterrupted run.

        Raises:
            ValueError: the state is of other rows, another batch or another seed.
        """
        for name, value in self.state().items():
            if name != "step" and state.get(name) != value:
                raise ValueError(f"the state has {name} {state.get(name)}, and this run {value}")
        self._step = int(state["step"])

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        epoch, step = divmod(self._step, self.steps_per_epoch)
        if epoch != self._epoch_order[0]:
            self._epoch_order = (epoch, self._order(epoch))
        size = self.batch // self.shard[1]
        first = step * self.batch + self.shard[0] * size
        rows = [self.rows[int(r)] for r in self._epoch_order[1][first : first + size]]
        self._step += 1
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def _order(self, epoch: int) -> np.ndarray:
        """The order of the rows in an epoch."""
        if not self.shuffle:
            return np.arange(len(self.rows))
        return np.random.default_rng((self._seed, epoch)).permutation(len(self.rows))


def _read(documents: Any) -> Documents:
    """The documents of a sequence of ids, or of dicts with "ids" and perhaps "mask"."""
    items = [documents[i] for i in range(len(documents))]
    if not (items and isinstance(items[0], dict)):
        return from_arrays(items)
    masks = [x["mask"] for x in items] if "mask" in items[0] else None
    return from_arrays([x["ids"] for x in items], masks)
