"""PageTiers: pages of prefixes on the device, in host memory and in files, and their ways down."""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Collection, Hashable, Iterator
from typing import Any

import numpy as np

from ..core.byte_counts import nbytes
from .prefix_files import DiskTier
from .prefix_index import PrefixIndex

TIERS = ("device", "host", "disk")
Take = Callable[[int], Any] | None  # gives the arrays of a page of the pool


class HostTier:
    """Pages in host memory.

    Args:
        limit: bytes of their arrays.
        policy: says which tail goes first.
    """

    def __init__(self, limit: int, policy: Any) -> None:
        self.index = PrefixIndex(limit, policy)
        self.pages: dict[Hashable, Any] = {}

    def put(self, key: bytes, parent: bytes, page: Any) -> Iterator[tuple[bytes, Any]]:
        """Takes in a page; gives those that had to go, or this one: (key, page) each."""
        size = nbytes(page)
        while self.index.used + size > self.index.limit:
            gone = self.index.tail()
            if gone is None:
                yield key, page
                return
            yield gone, self.remove(gone)
        self.pages[key] = page
        self.index.add(key, parent, size)

    def remove(self, key: bytes) -> Any:
        """Takes out a page, and returns it."""
        self.index.remove(key)
        return self.pages.pop(key)


@dataclasses.dataclass
class PageRecord:
    """What is known of a page on the device, in host memory, or just read from a file."""

    tokens: np.ndarray  # (size,)
    parent: bytes
    seconds: float  # that it took to compute
    page_id: int | None = None  # in the pool


class PageTiers:
    """Where each page is. It moves down tail first, so that what a tier holds are whole chains.

    Args:
        policy: orders the pages of all tiers.
        limits: pages on the device, bytes in host memory, bytes of files.
        folder: of the files.
    """

    def __init__(self, policy: Any, limits: tuple[int, int, int], folder: pathlib.Path) -> None:
        device, host, disk = limits
        self.policy = policy
        self.pages: dict[bytes, PageRecord] = {}
        self.key_of: dict[int, bytes] = {}  # by the page's id
        self.device = PrefixIndex(device, policy)
        self.host = HostTier(host, policy)
        self.disk = DiskTier(disk, policy, folder)

    def utilisation(self) -> dict[str, float]:
        """{tier: share of its limit that is used}; 0 for a tier that is not there."""
        indices = self.device, self.host.index, self.disk.index
        return {tier: x.used / max(x.limit, 1) for tier, x in zip(TIERS, indices)}

    def held(self, keys: list[bytes], rows: np.ndarray) -> int:
        """How many of the first pages are in some tier; files are not opened yet.

        `rows` has the tokens (pages, size) of each.
        """
        for i, key in enumerate(keys):
            here = any(key in x for x in (self.device, self.host.index, self.disk.index))
            if not here or not self.agrees(keys, rows, i):
                return i
        return len(keys)

    def agrees(self, keys: list[bytes], rows: np.ndarray, i: int) -> bool:
        """Whether page i has the tokens `rows[i]`, as far as is known; keys alone may be equal."""
        record = self.pages.get(keys[i])
        if record is None:
            return True
        return np.array_equal(record.tokens, rows[i]) and record.parent == parent_of(keys, i)

    def get(
        self, keys: list[bytes], rows: np.ndarray, i: int
    ) -> tuple[str, int | None, Any, float] | None:
        """(tier, id, arrays, seconds saved) of page i, which is `held`; None if its file is bad."""
        key, record = keys[i], self.pages.get(keys[i])
        if key in self.device:
            return "device", record.page_id, None, record.seconds
        if key in self.host.index:
            return "host", None, self.host.pages[key], record.seconds
        start = time.perf_counter()
        wanted = rows[i].copy()
        stored = self.disk.get(key, parent_of(keys, i), wanted)
        if stored is None:
            self._forget(key)
            return None
        page, seconds = stored
        self.pages[key] = PageRecord(wanted, parent_of(keys, i), seconds)
        return "disk", None, page, seconds - (time.perf_counter() - start)

    def use(self, key: bytes) -> None:
        """Takes note that a page is used."""
        self.policy.use(key)
        for index in (self.device, self.host.index, self.disk.index):
            index.touch(key)

    def add(
        self, keys: list[bytes], rows: np.ndarray, i: int, *, page_id: int, seconds: float
    ) -> None:
        """Takes page i in on the device; the one before it is there.

        Args:
            keys: of the prefix.
            rows: the tokens (pages, size) of the prefix.
            i: which of its pages.
            page_id: its id in the pool.
            seconds: that it took to compute, if it is new.
        """
        key, parent = keys[i], parent_of(keys, i)
        new = PageRecord(rows[i].copy(), parent, seconds)
        self.pages.setdefault(key, new).page_id = page_id
        self.key_of[page_id] = key
        self.use(key)
        self.device.add(key, parent)

    def make_room(self, kept: Collection[bytes], freed: list[int], take: Take) -> bool:
        """Gives up pages until one more has room on the device; whether it has.

        `freed` gets their ids. Those in `kept` stay.
        """
        while self.device.used >= self.device.limit:
            gone = self.device.tail(kept)
            if gone is None:
                return False
            freed.append(self.give_up(gone, take))
        return True

    def give_up(self, key: bytes, take: Take) -> int:
        """Moves a page from the device to the tiers below, whose arrays `take` gives; its id."""
        self.policy.evicted(key)
        self.device.remove(key)
        record = self.pages[key]
        page_id, record.page_id = record.page_id, None
        del self.key_of[page_id]
        host, disk = self.host.index, self.disk.index
        is_below = key in host or (key in disk and not host.limit)
        if take is not None and (host.limit or disk.limit) and not is_below:
            for gone, page in self.host.put(key, record.parent, take(page_id)):
                self._write(gone, page)
                self._forget(gone)
        self._forget(key)
        return page_id

    def flush(self, take: Take) -> None:
        """Writes what is on the device and in host memory into files, as far as they fit."""
        keys = dict.fromkeys([*self.device.parents, *self.host.index.parents])
        for key in keys if self.disk.index.limit else ():
            page = self.host.pages.get(key)
            if key not in self.disk.index and (page is not None or take is not None):
                page = take(self.pages[key].page_id) if page is None else page
                self._write(key, page, keys)

    def _write(self, key: bytes, page: Any, kept: Collection[bytes] = ()) -> None:
        """Writes a page into a file; of the files in `kept` none goes for it."""
        record = self.pages[key]
        parent, tokens, seconds = record.parent, record.tokens, record.seconds
        for gone in self.disk.put(key, parent, tokens, page, seconds=seconds, kept=kept):
            self._forget(gone)

    def _forget(self, key: bytes) -> None:
        """Drops what is known of a page that is in no tier."""
        if not any(key in x for x in (self.device, self.host.index, self.disk.index)):
            self.pages.pop(key, None)
            self.policy.forget(key)


def parent_of(keys: list[bytes], i: int) -> bytes:
    """The key before page i."""
    return keys[i - 1] if i else b""
