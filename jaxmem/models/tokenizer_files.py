"""The tokenizer and the chat template beside a checkpoint's weights, or inside a GGUF file."""

import pathlib
from typing import TYPE_CHECKING

from ..core.warning import warn
from ..formats import gguf, tokenizers
from ..io.json_fields import read_object
from .vocabulary_files import read_vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
CHAT_TEMPLATE = "chat_template.jinja"
MOST_TOKENS = 2**24


def read_tokenizer(folder: pathlib.Path) -> "Tokenizer | None":
    """The tokenizer of `tokenizer.json` in a folder, or else of its vocabulary; None without one.

    A vocabulary of which no tokenizer can be made is None too, and a warning says why.

    Raises:
        ValueError: the file is no tokenizer, or one that cannot encode an unknown word.
    """
    path = folder / TOKENIZER
    if not path.is_file():
        try:
            tokenizer = read_vocabulary(folder)
            return tokenizer and _checked(tokenizer, folder)
        except ValueError as error:
            warn(f"{error}. The model is loaded without a tokenizer")
            return None
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: {error}") from error
    return _built(text, path)


def check_fits(tokenizer: "Tokenizer | None", vocab: int, source: object) -> None:
    """Refuses a tokenizer whose texts have tokens that a model of `vocab` tokens lacks.

    A token that was added beyond them, which only its own text makes, is none of these: files have
    such tokens that are never used (Gemma 3 for texts has that of images). A prompt with it is
    refused.

    Raises:
        ValueError: a token of the vocabulary itself, or one around each text, is not below `vocab`.

    Example:
        >>> from tokenizers import Tokenizer, models
        >>> words = Tokenizer(models.WordLevel({"a": 0, "b": 64}, unk_token="a"))
        >>> check_fits(words, 64, "here")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: the tokenizer of here has 'b' with the id 64, expected ids below 64, ...
    """
    if tokenizer is None or not vocab or max(tokenizer.get_vocab().values(), default=0) < vocab:
        return
    unknown = getattr(tokenizer.model, "unk_token", None)  # any text may have it
    added = (x.content for x in tokenizer.get_added_tokens_decoder().values())
    others = set(added) - {unknown}
    words = tokenizer.get_vocab(with_added_tokens=False).items()
    beyond = {i: token for token, i in words if i >= vocab and token not in others}
    beyond |= {i: tokenizer.id_to_token(i) for i in tokenizer.encode("").ids if i >= vocab}
    if beyond:
        first = min(beyond)
        raise ValueError(
            f"the tokenizer of {source} has {beyond[first]!r} with the id {first}, expected ids "
            f"below {vocab}, which are the rows of the model's embedding; put the tokenizer of "
            "these weights there, or none"
        )


def read_chat_template(folder: pathlib.Path) -> str | None:
    """The chat template of a folder, of several the one that is named default; None without one.

    Raises:
        ValueError: tokenizer_config.json is no JSON object.
    """
    path = folder / CHAT_TEMPLATE
    if path.is_file():
        return path.read_text(encoding="utf-8", errors="replace")
    path = folder / TOKENIZER_CONFIG
    template = read_object(path).get("chat_template") if path.exists() else None
    if isinstance(template, list):  # several, each with its name
        named = {str(t.get("name")): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default", next(iter(named.values()), None))
    return template if isinstance(template, str) else None


def read_gguf_tokenizer(file: gguf.Gguf, folder: pathlib.Path) -> "Tokenizer | None":
    """The tokenizer in a folder, or else in a GGUF file; None if there is none.

    A tokenizer of the file that cannot be built is None too, and a warning says why.
    """
    beside = read_tokenizer(folder)
    if beside is not None:
        return beside
    problems, text = [], file.fields.get("tokenizer.huggingface.json")
    if isinstance(text, str):
        try:
            return _built(text, file.path)
        except ValueError as error:
            problems.append(str(error))
    kind = file.fields.get("tokenizer.ggml.model")
    if kind not in (None, "none", "no_vocab") or "tokenizer.ggml.tokens" in file.fields:
        try:
            return tokenizers.from_gguf(file)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        warn(
            f"{'; '.join(problems)}. The model is loaded without a tokenizer: put a "
            f"{TOKENIZER} beside the file"
        )
    return None


def _built(text: str, path: pathlib.Path) -> "Tokenizer":
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(text)
        tokenizer.encode("")  # a template of tokens that are not there fails only when it is used
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # Exception, and what a panic of its Rust code raises
        raise ValueError(f"{path} is no tokenizer: {error}") from error
    tokenizer.no_padding()  # some files say 128 tokens, whatever the text; the caller decides
    tokenizer.no_truncation()
    return _checked(tokenizer, path)


def _checked(tokenizer: "Tokenizer", path: pathlib.Path) -> "Tokenizer":
    """The tokenizer, if it can encode an unknown word, and none of its ids is too large."""
    from tokenizers import models

    if isinstance(tokenizer.model, models.WordPiece):
        unknown = tokenizer.model.unk_token
        if tokenizer.model.token_to_id(unknown) is None:
            raise ValueError(
                f"{path}: the token of unknown words is {unknown!r}, expected one of the "
                "vocabulary; add it to the vocabulary, or name another as unk_token"
            )
    largest = max(tokenizer.get_vocab().values(), default=0)
    if largest > MOST_TOKENS:  # the library would make a list of so many tokens to write them
        raise ValueError(f"{path}: a token has the id {largest}, expected at most {MOST_TOKENS}")
    return tokenizer
