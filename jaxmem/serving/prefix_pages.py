"""PrefixPages: the pages of a pool that a cache of prefixes holds, given to rows that begin so."""

from collections.abc import Iterable

import jax
import numpy as np
from jax import Array

from ..kv_cache.page_pool import PagePool
from ..kv_cache.prefix_cache import Prefixes, claim
from . import pool_programs as programs
from .engine_row import EngineRow


class PrefixPages:
    """A cache of prefixes, and what its moves do to a pool.

    The cache counts a reference to each page that it holds. A row pins those that it uses.
    Functions take a pool and give it back changed.

    Args:
        cache: holds no page yet, or what it found in files.
        form: says what pages are: their options and their dtype.

    Raises:
        ValueError: the cache holds pages of another pool; also when a prompt is looked up.
    """

    def __init__(self, cache: Prefixes, form: str):
        self.cache, self.form = cache, form
        claim(cache, self, form)

    def find(self, row: EngineRow) -> None:
        """Looks a prompt up, and pins what is on the device, unless it was done for this row."""
        if row.hit is None:
            claim(self.cache, self, self.form)
            row.hit = self.cache.match(row.prompt)
            row.pinned = list(row.hit.ids)
            self.cache.pin(row.pinned)

    def leave(self, row: EngineRow) -> None:
        """Unpins what a row uses."""
        self.cache.unpin(row.pinned)
        row.hit, row.pinned = None, []

    def evict(self, pool: PagePool, pages: int) -> PagePool:
        """The pool with up to so many more free pages; what rows use stays."""
        return self._drop(pool, self.cache.evict(pages, take=self._take(pool)))

    def attach(self, pool: PagePool, slot: int, row: EngineRow) -> tuple[PagePool, int]:
        """(the pool whose row begins with what was found of its prompt, how many tokens)."""
        pool, ids = self._promote(pool, row)
        tokens = min(row.hit.tokens, len(ids) * pool.size) // self.cache.chunk * self.cache.chunk
        if not tokens:
            return pool, 0
        pages = self._padded(pool, ids)
        pool, ok = programs.attach(pool, np.int32(slot), pages, np.int32(tokens))
        return pool, tokens if ok else 0

    def keep(self, pool: PagePool, slot: int, row: EngineRow, seconds: float) -> PagePool:
        """The pool whose pages of a prompt, just read, the cache holds as far as it wants."""
        tokens = row.prompt[:-1]
        whole = len(tokens) // pool.size
        ids = np.asarray(programs.table_row(pool, np.int32(slot)))[:whole].tolist()
        ids = ids[: ids.index(0)] if 0 in ids else ids  # a page behind all windows is gone
        moves = self.cache.insert(tokens, ids, seconds=seconds, take=self._take(pool))
        pool = programs.hold(pool, self._padded(pool, moves.held)) if moves.held else pool
        self.cache.pin(moves.held)
        row.pinned += moves.held
        return self._drop(pool, moves.freed)

    def flush(self, pool: PagePool) -> None:
        """Writes what is in no file yet to the disk, if the cache has one."""
        self.cache.flush(take=self._take(pool))

    def _promote(self, pool: PagePool, row: EngineRow) -> tuple[PagePool, list[int]]:
        """(the pool with the pages of the host and of files that were found, all pages found)."""
        ids, blobs = list(row.hit.ids), row.hit.blobs
        if not blobs:
            return pool, ids
        pool, new, ok = programs.reserve(pool, np.int32(len(blobs)))
        if not ok:
            return pool, ids
        new = np.asarray(new)[: len(blobs)].tolist()
        for page, blob in zip(new, blobs):
            pool = programs.put(pool, np.array([page], np.int32), blob)
        prefix = row.prompt[: row.hit.tokens]
        moves = self.cache.insert(prefix, ids + new, take=self._take(pool))
        self.cache.pin(moves.held)
        row.pinned += moves.held  # what was reserved is held once
        given_up = new[len(moves.held) :]
        pool = self._drop(pool, [*moves.freed, *given_up])
        return pool, ids + new[: len(moves.held)]

    def _drop(self, pool: PagePool, ids: Iterable[int]) -> PagePool:
        ids = list(ids)
        for start in range(0, len(ids), pool.most):
            part = ids[start : start + pool.most]
            pool = programs.drop(pool, self._padded(pool, part))
        return pool

    def _padded(self, pool: PagePool, ids: Iterable[int]) -> np.ndarray:
        """Pages (most,), so that one program takes any number of them."""
        ids = np.array(list(ids), np.int32)
        return np.pad(ids, (0, pool.most - len(ids)))

    def _take(self, pool: PagePool):
        """What copies a page of the pool to the host."""

        def take(page: int) -> Array:
            return jax.device_get(programs.take(pool, np.array([page], np.int32)))

        return take
