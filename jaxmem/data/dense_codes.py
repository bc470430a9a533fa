"""(s, c)-dense codes: frequent ids take one byte, and the last byte of each id is below s.

Ids are ranked by their frequency. A code is any number of bytes from s to 255, then one below s:
s ids take one byte, s * c take two, s * c² three, with c = 256 - s. So where a code ends is seen in
each byte alone, and numpy reads a block without a loop over its ids. A general compressor makes the
bytes smaller than those of fixed width, as equal ids are equal bytes. (Brisaboa et al., 2003:
dense codes for natural language.)
"""

import numpy as np

STOPPERS = 208  # of 176 to 232 the best by 0.1 % on English text
MOST_BYTES = 4  # of a code: 208 * 48³ ids are over 23 million
_WEIGHTS = np.array([STOPPERS * (256 - STOPPERS) ** i for i in (2, 1, 0)] + [1], np.int32)
_CACHED = 1 << 15  # ids that are read together, so that their arrays stay in the cache
RARE = (
    4  # ids that are less frequent stay in their own order: to rank them costs more than it saves
)


def frequency_classes(counts: np.ndarray) -> np.ndarray:
    """The classes (vocabulary,) u8 of ids that occur `counts` times: each doubling is a class.

    A class is what a file stores of a frequency; 0 holds the rare ids.

    Example:
        >>> frequency_classes(np.array([0, 3, 4, 7, 8, 1000])).tolist()
        [0, 0, 3, 3, 4, 10]
    """
    classes = np.frexp(counts.astype(np.float64))[1]
    return np.where(counts < RARE, 0, classes).astype(np.uint8)


def ids_by_rank(classes: np.ndarray) -> np.ndarray:
    """The ids (vocabulary,) i32, most frequent class first, and in their own order within one.

    Example:
        >>> ids_by_rank(np.array([0, 2, 0, 3, 2], np.uint8)).tolist()
        [3, 1, 4, 0, 2]
    """
    return np.argsort(255 - classes, kind="stable").astype(np.int32)


def encode(ranks: np.ndarray) -> bytes:
    """The codes of ranks (n,), one after the other.

    Example:
        >>> list(encode(np.array([0, 207, 208])))
        [0, 207, 208, 0]
    """
    values, lengths = ranks.astype(np.int64), np.ones(len(ranks), np.int64)
    span = STOPPERS
    for _ in range(1, MOST_BYTES):
        longer = values >= span  # a value counts from the first rank of its length
        longer &= lengths == lengths.max(initial=0)
        if not longer.any():
            break
        values[longer] -= span
        lengths[longer] += 1
        span *= 256 - STOPPERS
    table = np.empty((len(ranks), MOST_BYTES), np.uint8)
    values, table[:, -1] = np.divmod(values, STOPPERS)
    for i in range(2, MOST_BYTES + 1):
        values, digit = np.divmod(values, 256 - STOPPERS)
        table[:, -i] = digit + STOPPERS
    return table[np.arange(MOST_BYTES) >= MOST_BYTES - lengths[:, None]].tobytes()


class Decoder:
    """Reads codes as the ids (vocabulary,) i32 of their ranks.

    One look-up in a table of byte pairs reads all codes of one or two bytes; the rare ones that are
    longer are read again.
    """

    def __init__(self, ids: np.ndarray):
        self.ids = np.append(ids, np.int32(-1))  # -1: no id has this rank
        last, before = np.indices((256, 256), dtype=np.int32)
        ranks = np.where(before < STOPPERS, last, (before - STOPPERS + 1) * STOPPERS + last)
        self._pairs = self.ids[np.minimum(ranks, len(ids))].reshape(-1)  # (65536,), 256 kB

    def decode(self, codes: bytes, count: int) -> np.ndarray:
        """The ids (count,) i32 of codes.

        Raises:
            ValueError: the bytes are not `count` codes of these ids.

        Example:
            >>> import numpy as np
            >>> Decoder(np.arange(3_000_000, dtype=np.int32)).decode(
            ...     encode(np.array([5, 300, 2_000_000])), 3
            ... ).tolist()
            [5, 300, 2000000]
        """
        data = bytes(MOST_BYTES - 1) + codes
        goes_on = np.frombuffer(data, np.uint8) >= STOPPERS
        ends = np.flatnonzero(~goes_on[MOST_BYTES - 1 :])  # indexed by numbers, as masks are slow
        if len(ends) != count or (codes and goes_on[-1]):
            raise ValueError(f"it is damaged: a block holds {len(ends)} ids, expected {count}")
        pairs = np.ndarray((len(codes),), "<u2", data, MOST_BYTES - 2, (1,))
        pairs = np.ascontiguousarray(pairs)  # `take` would copy all of them each time
        three = goes_on[1:-2] & goes_on[2:-1]
        out = np.empty(count, np.int32)
        for at in range(0, count, _CACHED):
            places = ends[at : at + _CACHED]
            ids = out[at : at + _CACHED]
            ids[:] = self._pairs.take(pairs.take(places))
            longer = np.flatnonzero(three.take(places))
            ids[longer] = self._longer(data, places[longer])
        if count and out.min() < 0:
            raise ValueError(f"it is damaged: an id is not among {len(self.ids) - 1}")
        return out

    def _longer(self, data: bytes, places: np.ndarray) -> np.ndarray:
        """The ids of codes of three or four bytes, the last of which are at `places`."""
        digits = np.frombuffer(data, np.uint8)[places[:, None] + np.arange(MOST_BYTES)]
        digits = digits.astype(np.int32)
        digits[:, :-1] -= STOPPERS - 1
        np.maximum(digits, 0, out=digits)  # a byte before the code is the last of another one
        ranks = digits @ _WEIGHTS
        return self.ids.take(np.minimum(ranks, len(self.ids) - 1))
