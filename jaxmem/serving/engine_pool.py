"""EnginePool: the pool of an engine, changed by the programs that read, generate and swap rows."""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from ..core.byte_counts import nbytes as bytes_of
from ..kv_cache import pages
from ..kv_cache.page_pool import PagePool, Pages
from ..kv_cache.prefix_cache import Prefixes
from ..models.device_decode_loop import MOST_STEPS
from ..models.model import Model
from . import pool_programs as programs
from .engine_row import EngineRow
from .prefix_pages import PrefixPages
from .row_sampling import RowChoices


class EnginePool:
    """A pool of pages that is replaced by each program, since it is donated to all of them.

    Args:
        model: a decoder with weights.
        empty: makes the pool, in which every page is free.
        chunk: tokens of a prompt that one program reads.
        vocab: tokens that the model's logits are of.
        prefixes: pages of prompts that were read before, or None.
        least_bits: the bits to which codes of pages may fall, or None.
    """

    def __init__(
        self,
        model: Model,
        empty: Callable[[], PagePool],
        chunk: int,
        vocab: int,
        prefixes: PrefixPages | None = None,
        least_bits: int | None = None,
    ):
        self.model, self.pool, self.chunk, self._empty = model, empty(), chunk, empty
        self.prefixes, self.least_bits = prefixes, least_bits
        self._seen = np.zeros(
            (self.pool.rows, vocab), bool
        )  # tokens of each row's prompt and answer

    @property
    def free(self) -> int:
        """Pages that no row has."""
        return int(self.pool.top)

    def pages(self, tokens: int) -> int:
        """How many pages so many tokens of a row take."""
        return -(-tokens // self.pool.size) * len(self.pool.groups)

    def held(self, tokens: int) -> int:
        """How many pages so many tokens of a row need at a time, without those behind windows.

        With a cache of prefixes all pages of a prompt are there until the cache has seen them.
        """
        if self.prefixes is not None:
            return self.pages(tokens)
        count = lambda tokens: -(-tokens // self.pool.size)
        new = count(max(self.chunk, MOST_STEPS)) + 1 + count(self.pool.options.sinks)
        return sum(
            count(tokens) if reach is None else min(count(tokens), count(reach) + new)
            for reach in self.pool.groups.reaches
        )

    def begin(self, slot: int, row: EngineRow) -> None:
        """Fills an empty row of the pool, so that it generates next.

        A prompt is read but for its last token, with which generation begins; what was swapped out
        is put back.
        """
        self._seen[slot] = False
        self._seen[slot, [*row.prompt.tolist(), *row.ids]] = True
        if row.blob is None:
            self._begin_prompt(slot, row)
        else:
            blob = self._filled(row.blob)
            if self.is_lowered and row.bits != self.least_bits:
                blob = pages.fewer_bits(blob, self.least_bits)
            self.pool, ok = programs.put_row(self.pool, np.int32(slot), blob)
            _check_pages(bool(ok))
        self._release_behind()

    def make_free(self, count: int) -> bool:
        """Whether so many pages are free, after a cache of prefixes gave up what it can."""
        if self.free < count and self.prefixes is not None:
            self.pool = self.prefixes.evict(self.pool, count - self.free)
        return self.free >= count

    @property
    def is_lowered(self) -> bool:
        """Whether the codes of pages have fallen to `least_bits`."""
        return self.least_bits is not None and self.pool.options.bits == self.least_bits

    def lower(self) -> bool:
        """Whether codes lost their low bits now, and the same bytes hold more pages.

        One layer at a time is on the device in both forms; the host has the new form of all. If a
        transfer fails, the pool is whole all the same: as before, or on the host, from where the
        next program takes it.
        """
        if self.least_bits is None or self.is_lowered:
            return False
        bits, before, (store,) = self.least_bits, bytes_of(self.pool), self.pool.stores
        fewer = jax.eval_shape(functools.partial(pages.fewer_bits, bits=bits), store)
        lowered = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), fewer)
        for i in range(store.keys.shape[0]):
            layer = jax.tree.map(lambda x: x[i : i + 1], store)  # noqa: B023
            layer = jax.device_get(pages.fewer_bits(layer, bits))
            jax.tree.map(lambda to, x: to.__setitem__(slice(i, i + 1), x), lowered, layer)  # noqa: B023
        del store
        options = dataclasses.replace(self.pool.options, bits=bits)
        self.pool = dataclasses.replace(self.pool, stores=(lowered,), options=options)
        self.pool = dataclasses.replace(self.pool, stores=(jax.device_put(lowered),))
        one = jax.ShapeDtypeStruct((1,), np.int32)
        page = bytes_of(jax.eval_shape(pages.take, self.pool, one))
        more = (before - bytes_of(self.pool)) // page - 2  # its null page, and counts
        if more > 0:
            self.pool = pages.grow(self.pool, more)
        return True

    def renew(self) -> None:
        """Gives pages the bits back that they began with; nothing may be at work."""
        if self.is_lowered:
            self.pool = None
            self.pool = self._empty()

    def found(self, row: EngineRow) -> int:
        """Pages in the pool that a cache of prefixes has for a row, which stay there for it."""
        if self.prefixes is None or row.blob is not None:
            return 0
        self.prefixes.find(row)
        return len(row.pinned)

    def decode(
        self, rows: Sequence[EngineRow | None], counts: list[int]
    ) -> list[tuple[list[int], list[float]]]:
        """The new tokens and log-probabilities of each row, at most `counts` of them."""
        self.pool, *found = programs.decode_rows(
            self.model.config,
            self.model.params,
            self.pool,
            np.array([0 if row is None else row.last for row in rows], np.int32),
            np.array(counts, np.int32),
            np.array([0 if row is None else len(row.ids) for row in rows], np.int32),
            self._seen,
            RowChoices.of([None if row is None else row.request for row in rows]),
        )
        self._release_behind()
        ids, logprobs, made, ok = jax.device_get(found)
        _check_pages(bool(ok.all()))
        for slot, count in enumerate(made):
            self._seen[slot, ids[slot, :count]] = True
        return [(ids[s, :n].tolist(), logprobs[s, :n].tolist()) for s, n in enumerate(made)]

    def take(self, slot: int, row: EngineRow) -> dict[str, Any]:
        """What a row holds, on the host: its pages alone, without the room of longer rows."""
        count = self.pages(row.tokens_in_pool)
        row.bits = self.pool.options.bits
        blob = jax.device_get(programs.take_row(self.pool, np.int32(slot)))
        return {**blob, "pages": jax.tree.map(lambda x: x[:, :count].copy(), blob["pages"])}

    def flush(self) -> None:
        """Writes the pages of a cache of prefixes that are in no file yet, if it has files."""
        if self.prefixes is not None:
            self.prefixes.flush(self.pool)

    def leave(self, row: EngineRow) -> None:
        """Lets a cache of prefixes give up what the row has used of it."""
        if row.hit is not None:
            self.prefixes.leave(row)

    def release(self, slots: Sequence[int]) -> None:
        """Frees the pages of rows."""
        if slots:
            mask = np.isin(np.arange(self.pool.rows), slots)
            self.pool = programs.release(self.pool, mask)

    def _begin_prompt(self, slot: int, row: EngineRow) -> None:
        """Fills an empty row with all of a prompt but its last token."""
        start, begin = 0, time.perf_counter()
        if self.prefixes is not None:
            self.prefixes.find(row)
            self.pool, start = self.prefixes.attach(self.pool, slot, row)
            row.cached_tokens = start
        self._read(slot, row.prompt[:-1], start)
        if self.prefixes is not None:
            seconds = time.perf_counter() - begin
            self.pool = self.prefixes.keep(self.pool, slot, row, seconds)

    def _read(self, slot: int, prompt: np.ndarray, begin: int) -> None:
        """Reads tokens (n,) into a row that has the first `begin` of them, chunk by chunk."""
        config, params, ok = self.model.config, self.model.params, True
        for start in range(begin, len(prompt), self.chunk):
            part = prompt[start : start + self.chunk]
            ids = np.pad(part, (0, self.chunk - len(part)))
            count = np.int32(len(part))
            self.pool, ok = programs.read_chunk(
                config, params, self.pool, np.int32(slot), ids, count
            )
            if self.prefixes is None:
                self._release_behind()
        _check_pages(bool(ok))

    def _release_behind(self) -> None:
        """Frees the pages that none of their layers sees any more."""
        if any(self.pool.groups.reaches):
            self.pool = programs.release_behind(self.pool)

    def _filled(self, blob: dict[str, Any]) -> dict[str, Any]:
        """What `take` gave, with the room of the longest row again, which `put_row` takes."""
        most = self.pool.most
        fill = lambda x: np.pad(x, ((0, 0), (0, most - x.shape[1]), *((0, 0),) * (x.ndim - 2)))
        return {**blob, "pages": jax.tree.map(fill, blob["pages"])}


def _check_pages(ok: bool) -> None:
    """Raises if the pool had not the pages that the engine counted."""
    if not ok:
        raise RuntimeError("the pool has fewer free pages than counted; was it changed elsewhere?")


def check_pages(
    config: Any, pages: Pages, chunk: int, prefixes: Prefixes | None, least_bits: int | None
) -> None:
    """Refuses prefixes of other pages than the engine's, and bits to which pages cannot fall."""
    if prefixes is not None and getattr(config, "recurrence", None):
        raise NotImplementedError(
            "prefixes are given for a model with recurrent layers, whose states are in no page"
        )
    if prefixes is not None and (prefixes.size, prefixes.chunk) != (pages.size, chunk):
        raise ValueError(
            f"prefixes have pages of {prefixes.size} tokens in chunks of {prefixes.chunk}, "
            f"expected {pages.size} and {chunk}, as the engine reads them"
        )
    if prefixes is not None and pages.by_window:
        raise ValueError("by_window is True with prefixes, whose pages hold all layers")
    if least_bits is None:
        return
    if least_bits not in (4, 2) or pages.bits is None or least_bits >= pages.bits:
        raise ValueError(f"least_bits is {least_bits} for {pages}, expected 4 or 2, and fewer bits")
    if prefixes is not None:
        raise ValueError(f"least_bits is {least_bits} with prefixes, whose pages keep their bits")
