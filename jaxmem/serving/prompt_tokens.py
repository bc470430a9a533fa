"""The token ids that a request's prompt becomes, checked against the model."""

import numpy as np

from ..models.chat_messages import chat_tokens
from ..models.model import Model
from ..models.output_tokens import check_room
from ..models.prompts import prompt_rows
from .generation_request import GenerationRequest


def prompt_tokens(model: Model, request: GenerationRequest) -> np.ndarray:
    """The token ids (tokens,) i32 of a request's text, messages or ids.

    Raises:
        ValueError: the model has no tokenizer for a text, or no chat template for messages; the
            template refuses them; an id is outside the vocabulary; prompt and answer together are
            longer than the model's context, or the model has no weights.
        TypeError: a message is no mapping with a text as its role.
    """
    if request.messages is not None:
        prompt = chat_tokens(model, list(request.messages))
    else:
        prompt = request.prompt if request.ids is None else np.array(request.ids)
    (row,) = prompt_rows(model, prompt)
    check_room(model, [row], 0, request.max_new_tokens)
    return row
