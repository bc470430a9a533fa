"""Every prompt of a file answered within a number of bytes, for `generate --prompts`."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ..core.byte_counts import nbytes
from ..kv_cache.page_pool import Pages
from ..kv_cache.prefix_cache import Prefixes
from ..models import Model
from ..serving import Answer, Engine, GenerationRequest, Refusal, read_requests
from ..serving.answer_file import AnswerFile, request_key
from ..serving.pool_size import PoolTooSmall
from .output import Output
from .output_path import check_out_file
from .sizes import show

_CHUNK = 128  # tokens of a prompt that one program reads
_MOST_PAGES = 10**9  # prefixes may fill the pool: they go when rows want pages


@dataclasses.dataclass(frozen=True)
class PromptBatch:
    """A file of prompts, the file of their answers, and the bytes that may be taken.

    Args:
        prompts: the path of a file of JSON lines.
        out: the path of the file of answers.
        memory: bytes of weights and of keys and values together.
        rows: the most prompts that are answered at the same time.
        pages: the form of the pages that hold keys and values.
        system: what the model is told before each conversation, or None.
        as_chat: whether a text is a user's message for the chat template.
        defaults: fields of `GenerationRequest` for lines that do not have them.
    """

    prompts: str
    out: str
    memory: int
    rows: int
    pages: Pages
    system: str | None
    as_chat: bool
    defaults: Mapping[str, Any]

    def run(self, model: Model, output: Output) -> dict:
        """Answers what has no answer in the file yet; what the JSON of the command has of it."""
        room = self.memory - nbytes(model.params)
        if room <= 0:
            weights = show(nbytes(model.params))
            raise ValueError(f"--memory is {show(self.memory)}, and the weights take {weights}")
        requests = [self._as_chat(r) for r in read_requests(self.prompts, defaults=self.defaults)]
        keys = [request_key(r, model.source, str(self.pages)) for r in requests]
        file = AnswerFile(check_out_file(self.out), keys)
        missing = set(file.missing)
        new = [(key, request) for key, request in zip(keys, requests) if key in missing]
        prefixes = Prefixes(_MOST_PAGES, size=self.pages.size, chunk=_CHUNK, policy="lru")
        options = {"rows": self.rows, "pages": self.pages, "chunk": _CHUNK, "prefixes": prefixes}
        try:
            engine = Engine(model, nbytes=room, **options)
        except PoolTooSmall as error:
            raise ValueError(self._too_small(nbytes(model.params), error.least)) from None
        start = time.perf_counter()
        answers = self._answer(engine, new, file, output)
        seconds = time.perf_counter() - start
        file.close()
        refused = [a for a in answers if a.finish == "refused"]
        for answer in refused:
            output.note(f"{answer.id} is refused: {answer.error}")
        tokens = sum(len(answer.ids) for answer in answers)
        output.say(
            f"{len(answers)} of {len(requests)} requests answered now, {len(refused)} of them "
            f"refused; {tokens} tokens, {tokens / seconds:.1f} a second; {self.out}"
        )
        return {
            "requests": len(requests),
            "answered_now": len(answers),
            "refused": {answer.id: answer.error for answer in refused},
            "tokens": tokens,
            "prompt_tokens": sum(answer.prompt_tokens for answer in answers),
            "cached_tokens": sum(answer.cached_tokens for answer in answers),
            "seconds": seconds,
            "pages": engine.pool.capacity,
            "pool_bytes": nbytes(engine.pool),
            "out": str(self.out),
        }

    def _too_small(self, weights: int, pool: int) -> str:
        """Why not even one page fits, in terms of the options."""
        return (
            f"--memory is {show(self.memory)}, expected at least {weights + pool:,} bytes: "
            f"{show(weights)} of weights, and {show(pool)} of keys and values in a single page "
            f"for --rows {self.rows}"
        )

    def _answer(
        self,
        engine: Engine,
        requests: Sequence[tuple[str, GenerationRequest | Refusal]],
        file: AnswerFile,
        output: Output,
    ) -> list[Answer]:
        """The answers to requests with their keys, each put into the file as it comes."""
        key_of = {}
        answers = []

        def put(key: str, answer: Answer) -> None:
            file.put(key, answer)
            answers.append(answer)

        for key, request in requests:
            if isinstance(request, Refusal):
                put(key, Answer(request.id, finish="refused", error=request.error))
            else:
                key_of[request.id] = key
        for answer in engine.add_sorted([r for _, r in requests if not isinstance(r, Refusal)]):
            put(key_of[answer.id], answer)
        with output.counting(f"answering {self.prompts}") as progress:
            progress(len(answers), len(requests))
            for piece in engine:
                if piece.answer is not None:
                    put(key_of[piece.id], piece.answer)
                    progress(len(answers), len(requests))
        return answers

    def _as_chat(self, request: GenerationRequest | Refusal) -> GenerationRequest | Refusal:
        """The request with its text as a message, and `system` before a conversation without it."""
        if not self.as_chat or isinstance(request, Refusal) or request.ids is not None:
            return request
        messages = request.messages or ({"role": "user", "content": request.prompt},)
        if self.system is not None and messages[0].get("role") != "system":
            messages = ({"role": "system", "content": self.system}, *messages)
        return dataclasses.replace(request, prompt=None, messages=messages)
