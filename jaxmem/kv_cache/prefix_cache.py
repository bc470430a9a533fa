"""Prefixes: pages of prompts that were read before, found again by their tokens."""

import json
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import jax
import numpy as np

from ..core.arguments import INTEGER, shown
from ..core.byte_sizes import parse
from ..io.fingerprint import fingerprint
from .eviction_policy import policy_named
from .prefix_index import chain_keys
from .prefix_results import PrefixHit, PrefixMoves, PrefixStats
from .prefix_tiers import TIERS, PageTiers


class Prefixes:
    """Prompts' pages by the tokens up to their end: what was read once is not read again.

    It holds ids of pages and bytes of the host, and no array of the device: the caller changes the
    pool by what `match`, `insert` and `evict` return. A page is found by a hash of all tokens up to
    its end, its tokens are compared, and whole chunks are found only: if the same program
    reads all prompts chunk by chunk, what follows a hit is the same, bit for bit, as what follows
    reading everything. So only pages that this program wrote may be inserted, none of decoding.

    Pages that the device has no room for go to the host's memory, then to files, with the tails of
    prompts before their heads. Files outlive the program. A damaged file is a miss.

    Args:
        device: pages of the pool that it may hold.
        host: bytes of host memory, as a number or such as "2GB"; 0 for none.
        disk: bytes of files in `path`, likewise.
        path: the folder of the files.
        policy: which page goes first: "lru", "aged" (by uses, of which old ones count less), or
            "auto", the better of the two by what caches of hashes alone would find.
        size: tokens a page.
        chunk: tokens that the program reads at once, a multiple of `size`; None is `size`.
        of: what pages are computed from, such as `(params, config.to_dict(), pages)`: a tree that
            `jm.save` takes. It is hashed once, and pages of anything else are never found. A disk
            wants it, since files outlive the weights of a program.
        salt: a text that is part of each key; who does not know it finds nothing.

    Raises:
        ValueError: `device` is below 1, `chunk` is no multiple of `size`, there is no such policy,
            a disk without a path or without `of`, or a path that is no folder.
        TypeError: an argument is of another kind.

    Example:
        >>> import numpy as np, jaxmem as jm
        >>> cache = jm.Prefixes(device=100, size=4)
        >>> prompt = np.arange(10)
        >>> cache.insert(prompt, [7, 3])  # the pool's pages of tokens 0 to 3 and 4 to 7
        PrefixMoves(held=(7, 3), freed=())
        >>> cache.match(np.append(prompt[:8], 99))
        PrefixHit(tokens=8, ids=(7, 3), blobs=(), tier='device')
        >>> cache.stats().hit_rate  # 8 of 9 tokens
        0.8888888888888888
    """

    def __init__(
        self,
        device: int,
        *,
        host: int | str = 0,
        disk: int | str = 0,
        path: str | os.PathLike | None = None,
        policy: Literal["auto", "aged", "lru"] = "auto",
        size: int = 64,
        chunk: int | None = None,
        of: Any = None,
        salt: str = "",
    ) -> None:
        chunk = size if chunk is None else chunk
        for name, number in (("device", device), ("size", size), ("chunk", chunk)):
            _check_count(name, number)
        if chunk % size:
            raise ValueError(f"Prefixes: chunk is {chunk}, expected a multiple of the size {size}")
        for name, text in (("policy", policy), ("salt", salt)):
            if not isinstance(text, str):
                raise TypeError(f"Prefixes: {name} is {shown(text)}, expected a string")
        if not isinstance(path, str | os.PathLike | None):
            raise TypeError(f"Prefixes: path is {shown(path)}, expected a path or None")
        disk_bytes = _bytes("disk", disk)
        if bool(disk_bytes) != (path is not None):
            raise ValueError(f"Prefixes: disk is {disk!r} and path {path!r}, expected both or none")
        if disk_bytes and of is None:
            raise ValueError("Prefixes: disk without of, expected the weights that pages are of")
        self.size, self.chunk = size, chunk
        pages = 0 if of is None else fingerprint(of)
        root = [pages, salt, size, chunk, jax.__version__, of is None or jax.default_backend()]
        self._root_of = lambda form: json.dumps([*root, form]).encode()
        self._root = self._root_of("")
        self._policy = policy_named(policy, device)
        limits = device, _bytes("host", host), disk_bytes
        self._tiers = PageTiers(self._policy, limits, pathlib.Path(path or "."))
        self._lookups = self._asked = 0
        self._hits = dict.fromkeys(TIERS, 0)
        self._seconds = 0.0
        self._owner: Any = None  # of the pool whose pages are held

    def match(self, tokens: Sequence[int] | np.ndarray) -> PrefixHit:
        """The longest prefix of `tokens` (n,) in whole chunks that is here; one token stays unread.

        Pages of lower tiers are read from them. The caller puts them into the pool and inserts
        them, or leaves them. `pin` the ids while anything may be evicted.

        Raises:
            TypeError: tokens are no integers.
        """
        tokens = _checked_tokens("match", tokens)
        keys = chain_keys(tokens, self.size, self._root)
        self._lookups += 1
        self._asked += len(tokens)
        self._policy.asked(keys)
        most = (len(tokens) - 1) // self.chunk * self.chunk // self.size  # one token is left
        rows = self._rows(tokens)
        count = self._whole_chunks(self._tiers.held(keys[:most], rows))
        found = []
        for i in range(count):
            page = self._tiers.get(keys, rows, i)
            if page is None:
                break
            found.append(page)
        found = found[: self._whole_chunks(len(found))]
        for key, (tier, _, _, seconds) in zip(keys, found):
            self._tiers.use(key)
            self._hits[tier] += self.size
            self._seconds += seconds
        ids = tuple(page_id for _, page_id, _, _ in found if page_id is not None)
        blobs = tuple(blob for _, _, blob, _ in found[len(ids) :])
        tier = max((tier for tier, *_ in found), key=TIERS.index, default=None)
        return PrefixHit(len(found) * self.size, ids, blobs, tier)

    def insert(
        self,
        tokens: Sequence[int] | np.ndarray,
        ids: Iterable[int],
        *,
        seconds: float = 0.0,
        take: Callable[[int], Any] | None = None,
    ) -> PrefixMoves:
        """Keeps the whole chunks of a prefix, whose pages the pool has under `ids`.

        Where a page of the same prefix is here already, it stays, and the one given is not held.
        If the device's limit is reached, others go, but none of this prefix and none that is
        pinned; where none can go, the rest of the prefix is not held.

        Args:
            tokens: of the prefix, (n,).
            ids: of the pages of its first tokens.
            seconds: that computing the pages that were not here took.
            take: gives the arrays of a page of the pool in host memory, for the tiers below. If it
                is None, pages that go are not kept there.

        Returns:
            The ids held from now on, whose references the caller counts up, and those to be counted
            down.

        Raises:
            ValueError: an id is below 1, is given twice, or is held for another prefix.
        """
        tokens, ids = _checked_tokens("insert", tokens), [int(i) for i in ids]
        count = self._whole_chunks(min(len(ids), len(tokens) // self.size))
        keys = chain_keys(tokens[: count * self.size], self.size, self._root)
        self._check_ids(ids[:count], keys)
        new = [i for i in range(count) if keys[i] not in self._tiers.device]
        rows, held, freed = self._rows(tokens), [], []
        for i in range(count):
            if not self._tiers.agrees(keys, rows, i):
                break
            if i not in new:
                continue
            if not self._tiers.make_room(set(keys), freed, take):
                break
            self._tiers.add(keys, rows, i, page_id=ids[i], seconds=seconds / len(new))
            held.append(ids[i])
        return PrefixMoves(tuple(held), tuple(freed))

    def evict(self, pages: int, *, take: Callable[[int], Any] | None = None) -> list[int]:
        """Gives up as many of the device's pages, or as many as are not pinned; their ids.

        Args:
            pages: how many.
            take: as in `insert`.
        """
        freed = []
        while len(freed) < pages and (gone := self._tiers.device.tail()) is not None:
            freed.append(self._tiers.give_up(gone, take))
        return freed

    def pin(self, ids: Iterable[int]) -> None:
        """Keeps pages on the device while they are in use; as often unpinned they may go again.

        Raises:
            ValueError: an id is of no page that is held.
        """
        for key in self._keys_of("pin", ids):
            self._tiers.device.pin(key)

    def unpin(self, ids: Iterable[int]) -> None:
        """Undoes one `pin` of each.

        Raises:
            ValueError: an id is of no page that is held, or is not pinned.
        """
        for key in self._keys_of("unpin", ids):
            if key not in self._tiers.device.pins:
                raise ValueError(f"unpin: page {self._tiers.pages[key].page_id} is not pinned")
            self._tiers.device.unpin(key)

    def flush(self, *, take: Callable[[int], Any] | None = None) -> None:
        """Writes the pages of device and host memory that are in no file yet, as far as they fit.

        Args:
            take: as in `insert`; if it is None, only what is in host memory is written.
        """
        self._tiers.flush(take)

    def stats(self) -> PrefixStats:
        """Counts so far."""
        disk = self._tiers.disk
        return PrefixStats(
            lookups=self._lookups,
            asked=self._asked,
            hits=dict(self._hits),
            utilisation=self._tiers.utilisation(),
            seconds_saved=self._seconds,
            bad_files=disk.bad_files,
            failed_writes=disk.failed_writes,
            last_error=disk.last_error,
            policy=self._policy.name,
        )

    def _whole_chunks(self, pages: int) -> int:
        """The pages of the whole chunks in so many pages."""
        return pages - pages % (self.chunk // self.size)

    def _rows(self, tokens: np.ndarray) -> np.ndarray:
        """The tokens (pages, size) of whole pages."""
        return tokens[: len(tokens) // self.size * self.size].reshape(-1, self.size)

    def _keys_of(self, function: str, ids: Iterable[int]) -> list[bytes]:
        ids = [int(i) for i in ids]
        for i in ids:
            if i not in self._tiers.key_of:
                raise ValueError(f"{function}: page {i} is not held")
        return [self._tiers.key_of[i] for i in ids]

    def _check_ids(self, ids: list[int], keys: list[bytes]) -> None:
        if len(set(ids)) < len(ids) or min(ids, default=1) < 1:
            raise ValueError(f"insert: ids are {ids}, expected different pages from 1 on")
        for i, key in zip(ids, keys):
            if self._tiers.key_of.get(i, key) != key:
                raise ValueError(f"insert: page {i} is held for another prefix")


def claim(cache: Prefixes, owner: Any, form: str) -> None:
    """Makes `owner` the one that has the pool whose pages the cache holds.

    Pages in memory or files that are not of this `form`, such as of other bits, are not found.

    Raises:
        ValueError: the cache holds pages of another's pool, whose numbers mean nothing here.
    """
    if cache._owner is not owner and cache._tiers.key_of:
        raise ValueError(
            f"prefixes hold {len(cache._tiers.key_of)} pages of another pool, expected a cache for "
            "this engine alone"
        )
    cache._owner, cache._root = owner, cache._root_of(form)


def _bytes(name: str, size: int | str) -> int:
    """A size in bytes, given as a number or as text."""
    if isinstance(size, str):
        return parse(size)
    if not INTEGER.accepts(size) or size < 0:
        raise ValueError(f"Prefixes: {name} is {shown(size)}, expected bytes of at least 0")
    return int(size)


def _check_count(name: str, number: Any) -> None:
    if not INTEGER.accepts(number):
        raise TypeError(f"Prefixes: {name} is {shown(number)}, expected an int")
    if number < 1:
        raise ValueError(f"Prefixes: {name} is {number}, expected at least 1")


def _checked_tokens(function: str, tokens: Any) -> np.ndarray:
    """Token ids (n,) as int32."""
    array = np.asarray(tokens)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise TypeError(f"{function}: tokens are {shown(tokens)}, expected integers (n,)")
    return array.astype(np.int32)
