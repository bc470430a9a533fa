"""What a prefix cache finds, moves and counts."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class PrefixHit:
    """The pages that `Prefixes.match` found: those on the device, then those from other tiers."""

    tokens: int  # whole chunks
    ids: tuple[int, ...]  # pages of the pool
    blobs: tuple[Any, ...]  # arrays of the host, a tree for each of the pages after them
    tier: Literal["device", "host", "disk"] | None  # the deepest that gave a page


@dataclasses.dataclass(frozen=True)
class PrefixMoves:
    """What `Prefixes.insert` did: pages of the pool that are held from now on, and no longer."""

    held: tuple[int, ...]
    freed: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class PrefixStats:
    """What a `Prefixes` did so far. Tokens are counted, and of utilisation pages or bytes."""

    lookups: int
    asked: int  # tokens that were looked up
    hits: Mapping[str, int]  # {tier: tokens found there}
    utilisation: Mapping[str, float]  # {tier: share of its limit}; 0 for one that is not there
    seconds_saved: float  # that pages took to compute, less what reading their files took
    bad_files: int  # that were damaged, gone or of other tokens: misses
    failed_writes: int  # files that the disk did not take
    last_error: str  # of a file
    policy: str  # that is followed now

    @property
    def hit_rate(self) -> float:
        """Tokens found of those looked up."""
        return sum(self.hits.values()) / max(self.asked, 1)
