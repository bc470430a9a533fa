"""Answer: what a request came to; Piece: a part of it, as soon as it is there."""

import dataclasses
from typing import Any, Literal

Finish = Literal["end", "length", "stop", "cancelled", "refused"]


@dataclasses.dataclass(frozen=True)
class Answer:
    """The tokens after a prompt, and why they end.

    `finish` is "end" after an end token of the model (which is the last of `ids`), "length" after
    `max_new_tokens`, "stop" before a stop text, "cancelled", or "refused" with the reason as
    `error`. `text` ends before the stop text, `ids` with the token that completed it; `text` is
    empty if the model has no tokenizer. `logprobs` has a natural logarithm for each of `ids` if the
    request asks for them. `cached_tokens` of the `prompt_tokens` were read before, for another
    request.
    """

    id: str
    text: str = ""
    ids: tuple[int, ...] = ()
    finish: Finish = "length"
    _: dataclasses.KW_ONLY
    error: str | None = None
    logprobs: tuple[float, ...] | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0

    def fields(self) -> dict[str, Any]:
        """The fields for JSON; `error` and `logprobs` only if they are there.

        Example:
            >>> Answer("a", "Hi", (7,), "end", prompt_tokens=3).fields()["finish"]
            'end'
        """
        fields = dataclasses.asdict(self)
        return {name: value for name, value in fields.items() if value is not None}


@dataclasses.dataclass(frozen=True)
class Piece:
    """The text and the tokens that a step adds to an answer; the last one has the whole `answer`.

    The texts of all pieces together are the text of the answer. A text that may still become a stop
    text, or part of a character, waits for the next piece; its tokens do not.
    """

    id: str
    text: str
    ids: tuple[int, ...]
    answer: Answer | None = None
