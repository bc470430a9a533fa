"""chain_keys, PrefixIndex: pages of token prefixes by the hash of all tokens up to their end."""

import hashlib
import heapq
from collections.abc import Collection, Hashable, Iterable, Sequence
from typing import Any

import numpy as np

KEY_BYTES = 16


def chain_keys(tokens: np.ndarray, size: int, root: bytes = b"") -> list[bytes]:
    """The key of each whole page of `size` tokens: blake2b of the key before it and its tokens.

    So equal keys mean equal prefixes, and what `root` says is part of each.

    Args:
        tokens: ids (n,).
        size: tokens a page.
        root: the key before the first page.

    Example:
        >>> import numpy as np
        >>> a, b = np.array([1, 2, 3, 4, 5]), np.array([1, 2, 9, 9])
        >>> [x == y for x, y in zip(chain_keys(a, 2), chain_keys(b, 2))]
        [True, False]
    """
    data = np.ascontiguousarray(tokens, "<i4").tobytes()
    keys = []
    for start in range(0, len(tokens) // size * size * 4, size * 4):
        page = data[start : start + size * 4]
        root = hashlib.blake2b(root + page, digest_size=KEY_BYTES).digest()
        keys.append(root)
    return keys


class PrefixIndex:
    """The keys that one tier holds, within a limit; the tails of chains go before their heads.

    Args:
        limit: the sum of sizes that it may hold: pages, or bytes.
        policy: says which tail goes first, such as `Lru()`.

    Example:
        >>> from jaxmem.kv_cache.eviction_policy import Lru
        >>> index = PrefixIndex(3, Lru())
        >>> index.fetch("abc"), index.fetch("abd"), index.fetch("abc")
        (0, 2, 2)
    """

    def __init__(self, limit: int, policy: Any) -> None:
        self.limit, self.policy = limit, policy
        self.used = 0
        self.parents: dict[Hashable, Hashable] = {}  # of each key that is here
        self.sizes: dict[Hashable, int] = {}
        self.children: dict[Hashable, int] = {}  # of each key that has some here
        self.pins: dict[Hashable, int] = {}
        self.heap: list[tuple[Any, Hashable]] = []
        self.order = policy.order

    def __contains__(self, key: Hashable) -> bool:
        return key in self.parents

    def __len__(self) -> int:
        return len(self.parents)

    def held(self, keys: Iterable[Hashable]) -> int:
        """How many of the first `keys` are here."""
        count = 0
        for key in keys:
            if key not in self.parents:
                break
            count += 1
        return count

    def add(self, key: Hashable, parent: Hashable, size: int = 1) -> None:
        """Takes in a key that is not here and that the policy knows; `room_for` makes room."""
        self.parents[key], self.sizes[key] = parent, size
        self.children[parent] = self.children.get(parent, 0) + 1
        self.used += size
        self.touch(key)

    def touch(self, key: Hashable) -> None:
        """Orders a key anew after the policy gave it another score."""
        if self.order != self.policy.order:
            return  # `tail` orders all keys anew
        if key in self.parents and key not in self.children and key not in self.pins:
            heapq.heappush(self.heap, (self.policy.score(key), key))

    def remove(self, key: Hashable) -> None:
        """Takes out a key."""
        parent = self.parents.pop(key)
        self.used -= self.sizes.pop(key)
        self.pins.pop(key, None)
        self.children[parent] -= 1
        if not self.children[parent]:
            del self.children[parent]
            self.touch(parent)

    def pin(self, key: Hashable) -> None:
        """Keeps a key here until it is unpinned as often as pinned."""
        self.pins[key] = self.pins.get(key, 0) + 1

    def unpin(self, key: Hashable) -> None:
        """Undoes one `pin`."""
        self.pins[key] -= 1
        if not self.pins[key]:
            del self.pins[key]
            self.touch(key)

    def tail(self, kept: Collection[Hashable] = ()) -> Hashable | None:
        """The key that goes next; None if each is pinned, has a successor here or is in `kept`."""
        if self.order != self.policy.order or len(self.heap) > 4 * len(self.parents) + 1000:
            self.order = self.policy.order
            self.heap = []
            for key in self.parents:
                self.touch(key)
        aside, found = [], None
        while self.heap and found is None:
            score, key = heapq.heappop(self.heap)
            is_tail = key in self.parents and key not in self.children and key not in self.pins
            if not is_tail or score != self.policy.score(key):
                continue
            aside.append((score, key))
            found = key if key not in kept else None
        for item in aside:
            heapq.heappush(self.heap, item)
        return found

    def fetch(self, keys: Sequence[Hashable]) -> int:
        """Looks `keys` up, then takes in those missing, as a cache of hashes alone does.

        Returns:
            How many of the first keys were here. With it hit rates of a trace are found.
        """
        self.policy.asked(keys)
        found = self.held(keys)
        for key in keys[:found]:
            self.policy.use(key)
            self.touch(key)
        kept = set(keys)
        for depth in range(found, len(keys)):
            if keys[depth] in self.parents:  # two prefixes have one key
                break
            while self.used >= self.limit:
                gone = self.tail(kept)
                if gone is None:
                    return found
                self.policy.evicted(gone)
                self.remove(gone)
                self.policy.forget(gone)
            self.policy.use(keys[depth])
            self.add(keys[depth], keys[depth - 1] if depth else None)
        return found
