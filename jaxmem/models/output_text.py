"""The text of new tokens, told apart from that of their prompt."""

from collections.abc import Sequence

from .model import Model
from .text_models import reads_source


def output_text(model: Model, prompt: Sequence[int], new: Sequence[int]) -> str:
    """The text that new tokens (n,) add to that of the prompt; an encoder-decoder's is its own.

    The prompt is decoded too, since a tokenizer may write a token otherwise after another one.
    """
    new = list(map(int, new))
    if reads_source(model):
        return model.tokenizer.decode(new)
    prompt = list(map(int, prompt))
    before = model.tokenizer.decode(prompt)
    return model.tokenizer.decode([*prompt, *new])[len(before) :]
