"""EngineRow: where a request of an engine is, from its prompt to its answer."""

import dataclasses
from typing import Any

import numpy as np

from ..kv_cache.prefix_results import PrefixHit
from ..models.model import Model
from ..models.output_text import output_text
from .answer import Answer, Finish, Piece
from .generation_request import GenerationRequest
from .stop_texts import first_stop, safe_length


@dataclasses.dataclass(eq=False)
class EngineRow:
    """A request, the tokens of its prompt (n,), and what is generated so far.

    `blob` is what the row holds in the pool, while it is swapped out. `age` is smaller for a row
    that was admitted before another. `hit` is what a cache of prefixes has of the prompt, and
    `pinned` the pages of it that the row keeps there.
    """

    request: GenerationRequest
    prompt: np.ndarray
    ids: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    blob: Any = None
    bits: int | None = None  # of the codes in `blob`
    age: int = 0
    cached_tokens: int = 0
    hit: PrefixHit | None = None
    pinned: list[int] = dataclasses.field(default_factory=list)
    _shown: int = 0  # characters and tokens that pieces had
    _given: int = 0
    _before: "EngineRow | None" = None  # this row before it was restarted

    @property
    def last(self) -> int:
        """The last token, which the model has not read."""
        return self.ids[-1] if self.ids else int(self.prompt[-1])

    @property
    def tokens_in_pool(self) -> int:
        """Tokens of the row whose keys and values are computed, once its prompt is read."""
        return len(self.prompt) - 1 + len(self.ids)

    @property
    def left(self) -> int:
        """The most tokens that are still to come."""
        return self.request.max_new_tokens - len(self.ids)

    def restart(self) -> None:
        """Forgets what was generated. The same tokens come again, and no piece comes twice."""
        if self._before is None or len(self._before.ids) < len(self.ids):
            self._before = dataclasses.replace(self)
        self.ids, self.logprobs, self.blob, self.cached_tokens = [], [], None, 0

    def extend(self, model: Model, ids: list[int], logprobs: list[float]) -> Piece | None:
        """Adds tokens; the piece that they make, with the answer if they end it.

        None while tokens come again that pieces had before.
        """
        before = len(self.ids)
        self.ids += ids
        self.logprobs += logprobs
        finish: Finish | None = None
        if self.ids[-1] in model.config.eos:
            finish = "end"
        elif self.left == 0:
            finish = "length"
        text = self._text(model, len(self.ids))
        stops = self.request.stop
        if (at := first_stop(text, stops)) is not None:
            count = before + 1
            while first_stop(self._text(model, count), stops) is None and count < len(self.ids):
                count += 1
            self.ids, self.logprobs, text, finish = (
                self.ids[:count],
                self.logprobs[:count],
                text[:at],
                "stop",
            )
        return self._piece(text, finish, safe_length(text, stops))

    def answer(self, model: Model, finish: Finish) -> Answer:
        """The answer as far as it is, for a row that ends without another token."""
        if self._before is not None and len(self._before.ids) > len(self.ids):
            return self._before.answer(model, finish)
        return self._answer(self._text(model, len(self.ids)), finish)

    def _piece(self, text: str, finish: Finish | None, safe: int) -> Piece | None:
        end = len(text) if finish else max(safe, self._shown)
        if finish is None and len(self.ids) <= self._given:
            return None
        piece = Piece(
            self.request.id,
            text[self._shown : end],
            tuple(self.ids[self._given :]),
            self._answer(text, finish) if finish else None,
        )
        self._shown, self._given = end, len(self.ids)
        return piece

    def _answer(self, text: str, finish: Finish) -> Answer:
        return Answer(
            self.request.id,
            text,
            tuple(self.ids),
            finish,
            logprobs=tuple(self.logprobs) if self.request.logprobs else None,
            prompt_tokens=len(self.prompt),
            cached_tokens=self.cached_tokens,
        )

    def _text(self, model: Model, count: int) -> str:
        """The text of the first `count` new tokens."""
        if model.tokenizer is None:
            return ""
        return output_text(model, self.prompt, self.ids[:count])
