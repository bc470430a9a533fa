"""Lru, Aged, Auto: which page of a prefix cache goes first, from the times at which it was used.

A policy knows keys only. It gives each a score, and of the pages without a successor the one with
the lowest score goes first.
"""

from collections.abc import Hashable, Sequence
from typing import Any

from .prefix_index import PrefixIndex

MEMORY = 8  # Auto halves what it counted whenever so many times its limit of pages was looked up
LEAD = 0.01  # of the pages looked up: by so much more must the other policy find to be followed


class Lru:
    """The page that was used longest ago goes first.

    Example:
        >>> policy = Lru()
        >>> for key in ("a", "b", "a"):
        ...     policy.use(key)
        >>> min("ab", key=policy.score)
        'b'
    """

    name = "lru"
    order = 0  # changes when all scores do

    def __init__(self) -> None:
        self.clock = 0
        self.scores: dict[Hashable, Any] = {}

    def use(self, key: Hashable) -> None:
        """Takes note that the page `key` is used now."""
        self.clock += 1
        self.scores[key] = self.clock

    def score(self, key: Hashable) -> Any:
        """What pages are ordered by."""
        return self.scores[key]

    def evicted(self, key: Hashable) -> None:
        """Takes note that `key` went to make room."""

    def forget(self, key: Hashable) -> None:
        """Drops what is known of `key`, which is nowhere any more."""
        self.scores.pop(key, None)

    def asked(self, keys: Sequence[Hashable]) -> None:
        """Takes note that a prefix with these keys was looked up."""


class Aged(Lru):
    """The page used least often goes first; uses of long ago count less (LFU with ageing).

    The score is the number of uses plus a clock, which is the highest score that went so far
    (Arlitt et al., 2000, LFU-DA). Of equal scores the page used longest ago goes. The uses of pages
    that went are remembered, so that one that comes again is not taken for new.

    Args:
        remembered: pages that went whose uses are kept.

    Example:
        >>> policy = Aged()
        >>> for key in ("a", "a", "b"):
        ...     policy.use(key)
        >>> min("ab", key=policy.score)
        'b'
    """

    name = "aged"

    def __init__(self, remembered: int = 65_536) -> None:
        super().__init__()
        self.remembered = remembered
        self.uses: dict[Hashable, int] = {}
        self.gone: dict[Hashable, int] = {}  # uses of pages that went, in this order
        self.age = 0

    def use(self, key: Hashable) -> None:
        super().use(key)
        self.uses[key] = 1 + (self.uses.get(key) or self.gone.pop(key, 0))
        self.scores[key] = self.age + self.uses[key], self.clock

    def evicted(self, key: Hashable) -> None:
        self.age = max(self.age, self.scores[key][0])

    def forget(self, key: Hashable) -> None:
        super().forget(key)
        self.gone[key] = self.uses.pop(key, 0)
        if len(self.gone) > self.remembered:
            del self.gone[next(iter(self.gone))]


class Auto:
    """The better of `Aged` and `Lru`, by two caches of hashes alone that see the same prompts.

    It begins with `Aged`, and follows the other one once its cache of hashes finds more pages.

    Args:
        pages: that the cache may hold.

    Example:
        >>> from jaxmem.kv_cache.prefix_index import PrefixIndex
        >>> policy = Auto(3)
        >>> index = PrefixIndex(3, policy)
        >>> [index.fetch(keys) for keys in ("abc", "abd", "abc")], policy.name
        ([0, 2, 2], 'aged')
    """

    def __init__(self, pages: int) -> None:
        self.policies = Aged(), Lru()
        self.shadows = PrefixIndex(pages, Aged()), PrefixIndex(pages, Lru())
        self.found = [0.0, 0.0]  # pages, by each of the shadows
        self.looked_up = 0.0
        self.leader = self.order = 0

    @property
    def name(self) -> str:
        """Of the policy that is followed."""
        return self.policies[self.leader].name

    def use(self, key: Hashable) -> None:
        for policy in self.policies:
            policy.use(key)

    def score(self, key: Hashable) -> Any:
        return self.policies[self.leader].score(key)

    def evicted(self, key: Hashable) -> None:
        for policy in self.policies:
            policy.evicted(key)

    def forget(self, key: Hashable) -> None:
        for policy in self.policies:
            policy.forget(key)

    def asked(self, keys: Sequence[Hashable]) -> None:
        self.found = [n + s.fetch(keys) for n, s in zip(self.found, self.shadows)]
        self.looked_up += len(keys)
        best = max(range(len(self.found)), key=self.found.__getitem__)
        if self.found[best] - self.found[self.leader] > LEAD * self.looked_up:
            self.leader, self.order = best, self.order + 1
        if self.looked_up > MEMORY * self.shadows[0].limit:
            self.found, self.looked_up = [n / 2 for n in self.found], self.looked_up / 2


def policy_named(name: str, pages: int) -> Any:
    """The policy "auto", "aged" or "lru" of a cache of so many pages.

    Raises:
        ValueError: there is none of this name.

    Example:
        >>> policy_named("lru", 8).name
        'lru'
    """
    if name == "auto":
        return Auto(pages)
    kinds = {"aged": Aged, "lru": Lru}
    if name not in kinds:
        raise ValueError(f"policy is {name!r}, expected 'auto', 'aged' or 'lru'")
    return kinds[name]()
