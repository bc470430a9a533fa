"""The tokens at which a GGUF model ends: those that the file names, and those known by their text.

A file names the token that ends a text (eos), a turn (eot) and a message (eom) in fields of their
own. Files often lack the last two; then llama.cpp knows the tokens by their text, and so does this.
"""

from typing import Any

from ..core.warning import warn
from .gguf import Gguf

_CONTROL = 3  # tokenizer.ggml.token_type
TURN_ENDS = (
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "<end_of_utterance>",
)
# These end a text only where the file says that they are control tokens: Gemma has </s> as HTML.
CONTROL_ENDS = ("</s>", "<eos>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<turn|>")
_NO_TOKEN = (-1, 0xFFFFFFFF)


def end_tokens(file: Gguf, vocab: int) -> list[int]:
    """The ids of the tokens that end a text, a turn or a message; `vocab` is the number of tokens.

    Raises:
        ValueError: A field that names such a token is no integer.
    """
    names = (f"tokenizer.ggml.{end}_token_id" for end in ("eos", "eot", "eom"))
    named = [token_id(file, name, vocab) for name in names]
    ids = dict.fromkeys(i for i in named if i is not None)
    return list(ids | dict.fromkeys(i for i in known_by_text(file) if i < vocab))


def token_id(file: Gguf, name: str, vocab: int) -> int | None:
    """The id in a field; None, and a warning, if the vocabulary of `vocab` tokens has no such id.

    Raises:
        ValueError: The field is no integer.
    """
    value = file.fields.get(name)
    if value is None or value in _NO_TOKEN:
        return None
    if type(value) is not int:
        raise ValueError(f"{file.path} has {name} = {value!r}, expected the id of a token")
    if not 0 <= value < vocab:
        warn(f"{file.path} has {name} = {value}, but {vocab} tokens; the field is ignored")
        return None
    return value


def known_by_text(file: Gguf) -> list[int]:
    """The ids of the tokens whose text is known to end a turn or a text."""
    tokens: Any = file.fields.get("tokenizer.ggml.tokens")
    types: Any = file.fields.get("tokenizer.ggml.token_type")
    if not isinstance(tokens, list):
        return []
    has_types = isinstance(types, list) and len(types) == len(tokens)
    ends = {text: tokens.index(text) for text in TURN_ENDS if text in tokens}
    if has_types:
        ids = {text: tokens.index(text) for text in CONTROL_ENDS if text in tokens}
        ends |= {text: i for text, i in ids.items() if types[i] == _CONTROL}
    if {"<|return|>", "<|call|>"} <= set(ends):  # gpt-oss ends each part of its answer so
        ends.pop("<|end|>", None)
    return sorted(ends.values())
