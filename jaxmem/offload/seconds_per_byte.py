"""SecondsPerByte: priority = clock + uses · seconds / bytes; the lowest is evicted (GDSF)."""

import dataclasses
import heapq
import itertools


@dataclasses.dataclass
class _Entry:
    nbytes: int
    seconds: float
    uses: int
    priority: float


class SecondsPerByte:
    """The order in which a cache of `capacity` bytes gives up its entries.

    Greedy-Dual-Size-Frequency (Cherkasova, 1998): an entry is worth the seconds that its uses save
    for each byte. The clock is the priority of the last entry that was evicted, so that an entry
    that was used often but long ago goes, too.

    Example:
        >>> order = SecondsPerByte(100)
        >>> order.add("slow", 60, seconds=3.0), order.add("quick", 40, seconds=0.1)
        ([], [])
        >>> order.add("new", 30, seconds=1.0), order.used
        (['quick'], 90)
    """

    def __init__(self, capacity: int) -> None:
        self.capacity, self.used = capacity, 0  # bytes
        self._clock = 0.0
        self._entries: dict[str, _Entry] = {}
        self._heap: list[tuple[float, int, str]] = []  # entries that were used since are stale
        self._count = itertools.count()

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def seconds(self, key: str) -> float:
        """How long the entry took to compute."""
        return self._entries[key].seconds

    def add(self, key: str, nbytes: int, seconds: float) -> list[str]:
        """Adds an entry, in the place of an older one; returns what was evicted for it.

        An entry of more bytes than the capacity, or one of less worth than all others, is evicted
        itself.
        """
        self.remove(key)
        if nbytes > self.capacity:
            return [key]
        self._entries[key] = _Entry(nbytes, seconds, 0, 0.0)
        self.used += nbytes
        self.touch(key)
        return self.evict(self.used - self.capacity)

    def touch(self, key: str) -> None:
        """Counts a use of an entry."""
        entry = self._entries[key]
        entry.uses += 1
        entry.priority = self._clock + entry.uses * entry.seconds / max(entry.nbytes, 1)
        heapq.heappush(self._heap, (entry.priority, next(self._count), key))
        if len(self._heap) > 2 * len(self._entries) + 64:
            self._heap = [(e.priority, next(self._count), k) for k, e in self._entries.items()]
            heapq.heapify(self._heap)

    def remove(self, key: str) -> None:
        """Forgets an entry, if it is there."""
        entry = self._entries.pop(key, None)
        self.used -= entry.nbytes if entry else 0

    def evict(self, nbytes: int) -> list[str]:
        """Evicts the entries of least worth until `nbytes` are free again, and returns them."""
        evicted, least = [], self.used - nbytes
        while self.used > max(least, 0):
            priority, _, key = heapq.heappop(self._heap)
            entry = self._entries.get(key)
            if entry is not None and entry.priority == priority:
                self._clock = max(self._clock, priority)
                self.remove(key)
                evicted.append(key)
        return evicted
