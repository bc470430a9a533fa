"""pack: each sequence goes into the fullest row that still has room for it, longest first."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from ..core.arguments import ROW_OF_INTEGERS, takes


@dataclasses.dataclass(frozen=True, eq=False)
class Packing:
    """Which pieces of which sequences are in which row of `width` tokens.

    Piece p is `size[p]` tokens of sequence `sequence[p]`, from its token `start[p]` on. Row r holds
    the pieces `row_starts[r]` to `row_starts[r + 1]`, one after the other.
    """

    width: int
    sequence: np.ndarray  # (pieces,) i64
    start: np.ndarray  # (pieces,) i64
    size: np.ndarray  # (pieces,) i64
    row_starts: np.ndarray  # (rows + 1,) i64

    def __len__(self) -> int:
        """The rows."""
        return len(self.row_starts) - 1

    @property
    def waste(self) -> float:
        """The share of all places that is padding."""
        places = len(self) * self.width
        return 1 - int(self.size.sum()) / places if places else 0.0

    def row(self, r: int) -> list[tuple[int, int, int]]:
        """The pieces of a row, each (sequence, start, size)."""
        at = slice(int(self.row_starts[r]), int(self.row_starts[r + 1]))
        return list(zip(*(x[at].tolist() for x in (self.sequence, self.start, self.size))))


@takes(lengths=ROW_OF_INTEGERS)
def pack(lengths: Sequence[int] | np.ndarray, width: int, *, longer: str = "refuse") -> Packing:
    """Packs sequences into rows of `width` tokens by best fit, longest first.

    Best fit decreasing takes at most 11/9 of the least number of rows, plus one (Johnson, 1973).
    Sequences of one length stay in their order.

    Args:
        lengths: tokens of each sequence (n,).
        width: tokens of a row.
        longer: what happens to a sequence that is longer than a row: "refuse", or "split" into
            pieces, each full but the last.

    Raises:
        ValueError: a sequence is empty, or longer than `width` where it may not be split; there
            are none; or `width` or `longer` is none of the above.

    Example:
        >>> import jaxmem as jm
        >>> packing = jm.data.pack([3, 5, 2, 6, 4], 8)
        >>> [packing.row(r) for r in range(len(packing))]
        [[(3, 0, 6), (2, 0, 2)], [(1, 0, 5), (0, 0, 3)], [(4, 0, 4)]]
        >>> round(packing.waste, 4)
        0.1667
    """
    lengths = np.asarray(lengths, np.int64)
    if width < 1 or longer not in ("refuse", "split"):
        raise ValueError(f"width {width}, longer {longer!r}: expected 1 or more, refuse or split")
    if lengths.ndim != 1 or not len(lengths):
        raise ValueError("there are no sequences to pack, expected at least one")
    least = int(lengths.argmin())
    if lengths[least] < 1:
        raise ValueError(f"sequence {least} has {lengths[least]} tokens, expected at least one")
    if (longest := int(lengths.max())) > width and longer == "refuse":
        raise ValueError(
            f"sequence {int(lengths.argmax())} has {longest} tokens, and a row {width}; "
            'split it (longer="split"), leave it out, or take wider rows'
        )
    pieces = -(-lengths // width)
    sequence = np.repeat(np.arange(len(lengths)), pieces)
    start = width * (np.arange(len(sequence)) - np.repeat(np.cumsum(pieces) - pieces, pieces))
    size = np.minimum(lengths[sequence] - start, width)
    order = np.argsort(-size, kind="stable")
    row = _rows(size[order].tolist(), width)
    by_row = order[np.argsort(row, kind="stable")]
    row_starts = np.concatenate([[0], np.cumsum(np.bincount(row))])
    return Packing(width, sequence[by_row], start[by_row], size[by_row], row_starts)


def _rows(sizes: list[int], width: int) -> np.ndarray:
    """The row of each piece: of the rows with room, the one with the least."""
    with_room: list[list[int]] = [[] for _ in range(width + 1)]
    rooms = 0  # bit i is set where a row has room for i tokens, so the next one is found at once
    rows, count = np.empty(len(sizes), np.int64), 0
    for piece, size in enumerate(sizes):
        fitting = rooms >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                rooms &= ~(1 << room)
        else:
            room, row, count = width, count, count + 1
        rows[piece] = row
        if room > size:
            with_room[room - size].append(row)
            rooms |= 1 << (room - size)
    return rows
