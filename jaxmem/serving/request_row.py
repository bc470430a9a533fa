"""The row that a request becomes, where the pool and the engine's length hold it."""

from ..models.model import Model
from .engine_pool import EnginePool
from .engine_row import EngineRow
from .generation_request import GenerationRequest
from .prompt_tokens import prompt_tokens


def row_of_request(
    model: Model, request: GenerationRequest, pool: EnginePool, *, length: int
) -> EngineRow:
    """A row with the tokens of the request's prompt; `length` is the most with its answer.

    Raises:
        ValueError: stop texts without a tokenizer; prompt and answer do not fit into `length` or
            into the pool; or as `prompt_tokens`.
        TypeError: as `prompt_tokens`.
    """
    if request.stop and model.tokenizer is None:
        raise ValueError(f"stop wants a tokenizer, which {model.source} has not")
    prompt = prompt_tokens(model, request)
    tokens = len(prompt) + request.max_new_tokens
    if tokens > length:
        raise ValueError(
            f"{request.max_new_tokens} tokens after a prompt of {len(prompt)}, expected no "
            f"more than {length} together"
        )
    if (pages := pool.held(tokens - 1)) > pool.pool.capacity:
        raise ValueError(
            f"{request.max_new_tokens} tokens after a prompt of {len(prompt)} take {pages} "
            f"pages, expected no more than the {pool.pool.capacity} of the pool"
        )
    return EngineRow(request, prompt)
