"""EnginePool: the pool of an engine, changed by the programs that read, generate and swap rows."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ..kv_cache.page_pool import PagePool
from ..models.model import Model
from . import pool_programs as programs
from .engine_row import EngineRow
from .row_sampling import RowChoices


class EnginePool:
    """A pool of pages that is replaced by each program, since it is donated to all of them.

    Args:
        model: a decoder with weights.
        pool: an empty pool, which nothing else uses.
        chunk: tokens of a prompt that one program reads.
        vocab: tokens that the model's logits are of.
    """

    def __init__(self, model: Model, pool: PagePool, chunk: int, vocab: int):
        self.model, self.pool, self.chunk = model, pool, chunk
        self._seen = np.zeros((pool.rows, vocab), bool)  # tokens of each row's prompt and answer

    @property
    def free(self) -> int:
        """Pages that no row has."""
        return int(self.pool.top)

    def pages(self, tokens: int) -> int:
        """How many pages so many tokens of a row take."""
        return -(-tokens // self.pool.size)

    def begin(self, slot: int, row: EngineRow) -> None:
        """Fills an empty row of the pool, so that it generates next.

        A prompt is read but for its last token, with which generation begins; what was swapped out
        is put back.
        """
        self._seen[slot] = False
        self._seen[slot, [*row.prompt.tolist(), *row.ids]] = True
        if row.blob is None:
            self._read(slot, row.prompt[:-1])
        else:
            self.pool, ok = programs.put_row(self.pool, np.int32(slot), self._filled(row.blob))
            _check_pages(bool(ok))

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
        ids, logprobs, made, ok = jax.device_get(found)
        _check_pages(bool(ok.all()))
        for slot, count in enumerate(made):
            self._seen[slot, ids[slot, :count]] = True
        return [(ids[s, :n].tolist(), logprobs[s, :n].tolist()) for s, n in enumerate(made)]

    def take(self, slot: int, row: EngineRow) -> dict[str, Any]:
        """What a row holds, on the host: its pages alone, without the room of longer rows."""
        pages = self.pages(row.tokens_in_pool)
        blob = jax.device_get(programs.take_row(self.pool, np.int32(slot)))
        return {**blob, "pages": jax.tree.map(lambda x: x[:, :pages].copy(), blob["pages"])}

    def release(self, slots: Sequence[int]) -> None:
        """Frees the pages of rows."""
        if slots:
            mask = np.isin(np.arange(self.pool.rows), slots)
            self.pool = programs.release(self.pool, mask)

    def _read(self, slot: int, prompt: np.ndarray) -> None:
        """Reads tokens (n,) into an empty row, chunk by chunk."""
        config, params, ok = self.model.config, self.model.params, True
        for start in range(0, len(prompt), self.chunk):
            part = prompt[start : start + self.chunk]
            ids = np.pad(part, (0, self.chunk - len(part)))
            count = np.int32(len(part))
            self.pool, ok = programs.read_chunk(
                config, params, self.pool, np.int32(slot), ids, count
            )
        _check_pages(bool(ok))

    def _filled(self, blob: dict[str, Any]) -> dict[str, Any]:
        """What `take` gave, with the room of the longest row again, which `put_row` takes."""
        most = self.pool.most
        fill = lambda x: np.pad(x, ((0, 0), (0, most - x.shape[1]), *((0, 0),) * (x.ndim - 2)))
        return {**blob, "pages": jax.tree.map(fill, blob["pages"])}


def _check_pages(ok: bool) -> None:
    """Raises if the pool had not the pages that the engine counted."""
    if not ok:
        raise RuntimeError("the pool has fewer free pages than counted; was it changed elsewhere?")
