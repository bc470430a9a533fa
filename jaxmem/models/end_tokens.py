"""The tokens at which a Hugging Face model ends, and the files of its folder that name them."""

import pathlib
from typing import TYPE_CHECKING

from ..formats.gguf_end_tokens import CONTROL_ENDS, TURN_ENDS
from ..io.json_fields import JsonFields, read_object
from .tokenizer_files import CHAT_TEMPLATE, TOKENIZER_CONFIG

if TYPE_CHECKING:
    from tokenizers import Tokenizer

GENERATION = "generation_config.json"


def end_tokens(
    folder: pathlib.Path, tokenizer: "Tokenizer | None", configured: tuple[int, ...]
) -> tuple[int, ...]:
    """The ids `configured` in config.json, those in generation_config.json, and ends of turns.

    A turn ends with a special token of the tokenizer that is known to end turns or texts, if the
    chat template writes it, and with the tokenizer's `eos_token` if the template names that.

    Raises:
        ValueError: a file is no JSON, or a field has the wrong type; the message names both.
    """
    generation = fields_of(folder / GENERATION)
    ids = dict.fromkeys((*configured, *generation.integers("eos_token_id")))
    ids |= dict.fromkeys(_turn_ends(folder, tokenizer) if tokenizer is not None else ())
    return tuple(i for i in ids if i >= 0)


def _turn_ends(folder: pathlib.Path, tokenizer: "Tokenizer") -> list[int]:
    """The ids of the special tokens with which the chat template ends turns."""
    fields = fields_of(folder / TOKENIZER_CONFIG)
    template = _template(folder, fields)
    texts = [text for text in (*TURN_ENDS, *CONTROL_ENDS) if text in template]
    if "eos_token" in template:
        eos = fields.data.get("eos_token")  # a text, or an object with one
        texts.append(eos.get("content") if isinstance(eos, dict) else eos)
    special = {
        token.content: i for i, token in tokenizer.get_added_tokens_decoder().items()
    }  # an added token is one token, whatever is around it
    return [special[text] for text in texts if isinstance(text, str) and text in special]


def _template(folder: pathlib.Path, fields: JsonFields) -> str:
    """The chat templates of a folder, one after the other; empty if it has none."""
    path = folder / CHAT_TEMPLATE
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    template = fields.data.get("chat_template") or ""
    if isinstance(template, list):  # several, each with its name
        template = "".join(str(one.get("template")) for one in template if isinstance(one, dict))
    return text + str(template)


def fields_of(path: pathlib.Path) -> JsonFields:
    """The fields of a JSON file, whose name is before theirs; none if there is no such file."""
    return JsonFields(read_object(path) if path.exists() else {}, f"{path}: ")
