"""Engine: many requests answered at once, their keys and values in one pool of pages."""

import functools
import math
from collections import deque
from collections.abc import Iterator, Sequence

import jax

from ..core.arguments import BYTES, takes
from ..core.byte_counts import nbytes as bytes_of
from ..core.leaf import is_encoded
from ..kv_cache.page_pool import PagePool, Pages
from ..kv_cache.page_usage import Usage, usage
from ..kv_cache.prefix_cache import Prefixes
from ..models.device_decode_loop import MOST_STEPS
from ..models.model import Model
from ..models.text_models import context, vocabulary
from .answer import Answer, Piece
from .engine_pool import EnginePool, check_pages
from .engine_row import EngineRow
from .generation_request import GenerationRequest
from .pool_size import chunk_of, pages_within
from .prefix_pages import PrefixPages
from .prompt_order import depth_first
from .request_row import row_of_request
from .served_models import check_model

_SPARE = 0.01  # of the pages stay free when a request is admitted, for rows that grow


class Engine:
    """Answers requests, as many at a time as the bytes of their keys and values allow.

    It is driven from outside: `add` puts a request in the queue, each `step` admits requests, reads
    their prompts and generates up to 32 tokens of every row in one program, and `cancel` takes a
    request out. Rows join and leave between steps.

    A row's answer is the same, bit for bit, whatever else the engine answers: the programs have
    one shape, a row sees its own pages only, and draws depend on its own seed. Prompts are read in
    chunks of one size; an engine of another `chunk` or `rows` may round otherwise.

    A request is admitted when its prompt and one more page fit into the free pages, less 1 % of
    all. If rows grow until no page is left, the last one admitted leaves: its pages go to the host
    if `host` bytes have room; otherwise it starts again later, and comes to the same tokens.

    Args:
        model: a decoder with weights, dense or encoded, on one device.
        nbytes: the most bytes of the pool of keys and values; weights and temporaries come on top.
        rows: the most requests that generate at the same time.
        pages: the form of the pages, such as `jm.Pages(4)`. Those behind a window of all their
            layers are free again; `jm.Pages(by_window=True)` sets layers with a window apart.
        chunk: tokens of a prompt that one program reads, a multiple of the page size or a divisor;
            None for the smallest multiple that is at least 128.
        length: the most tokens of a prompt with its answer; None for the model's context.
        host: the most bytes of swapped pages in host memory.
        prefixes: a cache of prompts that were read before, such as `jm.Prefixes(1000, chunk=128,
            of=(model.params, model.config.to_dict(), pages))`; None to read each prompt whole. It
            serves this engine alone. What it holds goes when rows want pages; `flush` writes it.
        least_bits: 4 or 2: before a row leaves for want of pages, all pages lose their low bits,
            as by `jm.pages.fewer_bits`, and there are more of them in the same bytes, until nothing
            is at work any more. Answers then depend on the load. None keeps the bits of `pages`.

    Raises:
        ValueError: the model predicts no text, has no weights, or is an encoder-decoder; `nbytes`
            holds no page; `prefixes` have pages of another pool; an option is out of range.
        NotImplementedError: the model is sharded over devices, or is a user's module; it has
            recurrent layers, and there are `prefixes`; or latents, and pages in bits.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmem as jm
        >>> from jaxmem.architectures import llama
        >>> config = llama.Config(
        ...     vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8
        ... )
        >>> init = jax.jit(llama.module(config).init)
        >>> params = init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
        >>> model = jm.models.Model(config, params, None, "random")
        >>> engine = jm.serving.Engine(model, nbytes=200_000, rows=2)
        >>> for i in range(3):
        ...     engine.add(jm.serving.GenerationRequest(f"r{i}", ids=[1, 2, i], max_new_tokens=4))
        >>> [(piece.id, len(piece.ids)) for piece in engine]
        [('r0', 4), ('r1', 4), ('r2', 4)]
        >>> engine.usage().allocated
        0
    """

    @takes(nbytes=BYTES, host=BYTES)
    def __init__(
        self,
        model: Model,
        *,
        nbytes: int | float,
        rows: int = 16,
        pages: Pages = Pages(),  # noqa: B008
        chunk: int | None = None,
        length: int | None = None,
        host: int | float = 0,
        prefixes: Prefixes | None = None,
        least_bits: int | None = None,
    ):
        vocab = vocabulary(model)
        check_model(model)
        if rows < 1:
            raise ValueError(f"rows is {rows}, expected at least 1")
        self.length = context(model) if length is None else length
        if not 1 <= self.length <= context(model):
            raise ValueError(f"length is {length}, expected at least 1, at most {context(model)}")
        chunk = chunk_of(chunk, pages.size)
        dtype = jax.tree.leaves(model.params, is_leaf=is_encoded)[0].dtype
        sizes = {"rows": rows, "most": -(-self.length // pages.size), "dtype": dtype}
        count = pages_within(nbytes, pages, model.config, **sizes)
        empty = functools.partial(pages.empty, model.config, count, **sizes)
        check_pages(model.config, pages, chunk, prefixes, least_bits)
        held = None if prefixes is None else PrefixPages(prefixes, f"{pages} {dtype}")
        self._pool = EnginePool(model, empty, chunk, vocab, held, least_bits)
        self.model, self.host = model, host
        self._rows: list[EngineRow | None] = [None] * rows
        self._queue: deque[EngineRow] = deque()
        self._ids: set[str] = set()
        self._swapped, self._age = 0, 0  # bytes on the host; rows admitted so far

    @takes()
    def add(self, request: GenerationRequest) -> None:
        """Puts a request at the end of the queue.

        Raises:
            ValueError: a request of this id is at work; its prompt and answer do not fit into the
                pool, the engine's `length` or the model's context; stop texts without a tokenizer;
                or as `jm.models.generate` and `jm.models.chat_prompt` refuse a prompt.
            TypeError: a message is no mapping with a text as its role.
        """
        self._add(self._checked(request))

    @takes()
    def add_sorted(self, requests: Sequence[GenerationRequest]) -> list[Answer]:
        """Puts requests in the queue so that prompts with a common beginning follow each other.

        A request that `add` would refuse keeps no other one back.

        Returns:
            An answer with the reason for each request that is refused.
        """
        refused, good = [], []
        for request in requests:
            try:
                good.append(self._checked(request))
                self._ids.add(request.id)
            except (ValueError, TypeError, NotImplementedError) as error:
                refused.append(Answer(request.id, finish="refused", error=str(error)))
        for i in depth_first([row.prompt for row in good]):
            self._add(good[i])
        return refused

    @takes()
    def cancel(self, id: str) -> Answer | None:
        """Takes a request out, with its pages; its answer so far. None if it is not at work."""
        for row in self._queue:
            if row.request.id == id:
                self._queue.remove(row)
                self._forget(row)
                return row.answer(self.model, "cancelled")
        for slot, row in enumerate(self._rows):
            if row is not None and row.request.id == id:
                self._leave([slot])
                return row.answer(self.model, "cancelled")
        return None

    def step(self) -> list[Piece]:
        """Reads the prompts that there is room for, and generates up to 32 tokens of each row.

        Returns:
            What is new of each answer; none if nothing is at work.
        """
        self._admit()
        counts = self._make_room()
        if not any(counts):
            return []
        pieces, done = [], []
        for slot, (ids, logprobs) in enumerate(self._pool.decode(self._rows, counts)):
            row = self._rows[slot]
            piece = None if row is None else row.extend(self.model, ids, logprobs)
            if piece is not None:
                pieces.append(piece)
                done += [slot] if piece.answer else []
        self._leave(done)
        if not self.at_work:
            self._pool.renew()
        return pieces

    def __iter__(self) -> Iterator[Piece]:
        """Steps until nothing is at work; yields each piece as it comes."""
        while self.at_work:
            yield from self.step()

    def flush(self) -> None:
        """Writes what prefixes hold to their files, where a later program finds it."""
        self._pool.flush()

    @property
    def at_work(self) -> int:
        """How many requests wait or generate."""
        return len(self._queue) + self.generating

    @property
    def generating(self) -> int:
        """How many requests have a row of the pool."""
        return sum(row is not None for row in self._rows)

    @property
    def pool(self) -> PagePool:
        """The pool as it is between two steps; the next step takes its memory."""
        return self._pool.pool

    def usage(self) -> Usage:
        """Pages and tokens of the pool, as `jm.pages.usage` counts them."""
        return usage(self.pool)

    def _checked(self, request: GenerationRequest) -> EngineRow:
        """The request with the tokens of its prompt, if it can be answered."""
        if request.id in self._ids:
            raise ValueError(f"the id {request.id!r} is that of a request at work")
        return row_of_request(self.model, request, self._pool, length=self.length)

    def _add(self, row: EngineRow) -> None:
        self._ids.add(row.request.id)
        self._queue.append(row)

    def _admit(self) -> None:
        """Gives rows of the pool to the first requests of the queue, as long as they fit."""
        for slot, held in enumerate(self._rows):
            if held is not None or not self._queue:
                continue
            row = self._queue[0]
            need = self._pool.held(row.tokens_in_pool + 1) - self._pool.found(row)
            spare = 1 + math.ceil(_SPARE * self.pool.capacity)
            alone = self.generating == 0  # then it fits, since `add` took it
            if not self._pool.make_free(need + spare) and not alone:
                return
            self._queue.popleft()
            self._age += 1
            row.age = self._age
            self._rows[slot] = row
            self._pool.begin(slot, row)
            self._drop_blob(row)

    def _make_room(self) -> list[int]:
        """How many tokens each row generates next; rows leave until there are pages for them."""
        pages = self._pool.pages
        while True:
            counts = [0 if row is None else min(MOST_STEPS, row.left) for row in self._rows]
            need = sum(
                pages(row.tokens_in_pool + count) - pages(row.tokens_in_pool)
                for row, count in zip(self._rows, counts)
                if row is not None
            )
            if self._pool.make_free(need):
                return counts
            if self._queue and self._queue[0].hit is not None:
                self._pool.leave(self._queue[0])  # it is looked up again when there is room
                continue
            if self._pool.lower():
                continue
            last = max((s for s, r in enumerate(self._rows) if r), key=lambda s: self._rows[s].age)
            self._preempt(last)

    def _preempt(self, slot: int) -> None:
        """Puts a row back to the front of the queue, its pages on the host or given up."""
        row = self._rows[slot]
        blob = self._pool.take(slot, row) if self.host else None
        if blob is not None and self._swapped + bytes_of(blob) <= self.host:
            row.blob = blob
            self._swapped += bytes_of(blob)
        else:
            row.restart()
        self._pool.leave(row)
        self._release([slot])
        self._queue.appendleft(row)

    def _leave(self, slots: list[int]) -> None:
        """Rows that are answered or cancelled give their pages back."""
        for slot in slots:
            self._forget(self._rows[slot])
        self._release(slots)

    def _release(self, slots: list[int]) -> None:
        self._pool.release(slots)
        for slot in slots:
            self._rows[slot] = None

    def _forget(self, row: EngineRow) -> None:
        self._ids.discard(row.request.id)
        self._pool.leave(row)
        self._drop_blob(row)

    def _drop_blob(self, row: EngineRow) -> None:
        """Gives up what a row has on the host."""
        if row.blob is not None:
            self._swapped -= bytes_of(row.blob)
            row.blob = None
