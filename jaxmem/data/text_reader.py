"""read: files of text or JSON lines as documents of token ids, and what of them is learnt."""

import functools
import json
import os
import pathlib
import tempfile
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..core.arguments import FUNCTION, ROW_OF_INTEGERS, Kind, shown, takes
from .documents import Documents, from_arrays
from .text_parts import TextParts, encoded

Chat = Callable[[list[list[dict]], list[bool]], list[str]]
_TOGETHER = 64  # conversations that a template renders at a time
PATHS = Kind(
    "a path or a list of paths",
    lambda x: (
        isinstance(x, str | os.PathLike)
        or (isinstance(x, list | tuple) and all(isinstance(p, str | os.PathLike) for p in x))
    ),
)
FOLDER = Kind("a path or None", lambda x: x is None or isinstance(x, str | os.PathLike))
_CHAT = Kind("a function or None", lambda x: x is None or callable(x))


@takes(
    files=PATHS,
    encode=FUNCTION,
    begin=ROW_OF_INTEGERS,
    end=ROW_OF_INTEGERS,
    chat=_CHAT,
    folder=FOLDER,
)
def read(
    files: str | os.PathLike | Sequence[str | os.PathLike],
    encode: Callable[[str], Sequence[int]],
    *,
    begin: Sequence[int] = (),
    end: Sequence[int] = (),
    chat: Chat | None = None,
    separator: str | None = None,
    folder: str | os.PathLike | None = None,
) -> Documents:
    """Reads files as `Documents`, each text between the tokens `begin` and `end`.

    A line of a .jsonl file is one of: {"text": ...}, of which all is learnt; {"prompt": ...,
    "completion": ...}, of which the completion is learnt; {"messages": [{"role", "content"}, ...]},
    of which what the role "assistant" says is learnt. Any other file is UTF-8 text.

    Args:
        files: one path, or several.
        encode: a text's token ids, without tokens before or after it.
        begin: the tokens before each text, such as BOS. A chat template writes them itself.
        end: the tokens after each text, such as EOS, which are learnt.
        chat: (conversations, whether a prompt follows) -> the texts that a chat template makes of
            them; `jm.models.documents` has that of a model.
        separator: what stands between texts in a text file, such as "<|endoftext|>" or a blank
            line; None if a file is one text.
        folder: where the documents are kept in token stores: then memory holds a text file or one
            line, and not all ids. None for memory.

    Raises:
        ValueError: a file has no text, or a line is none of the above; or nothing of it is learnt.
            The message has the file and the line.
        OSError: a file cannot be read.

    Example:
        >>> import json, pathlib, tempfile
        >>> import jaxmem as jm
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "train.jsonl")
        ...     _ = path.write_text(json.dumps({"prompt": "1+1=", "completion": "2"}))
        ...     documents = jm.data.read(path, lambda text: list(text.encode()), end=[0])
        >>> documents[0]["ids"].tolist(), documents[0]["mask"].astype(int).tolist()
        ([49, 43, 49, 61, 50, 0], [0, 0, 0, 0, 1, 1])
    """
    paths = [files] if isinstance(files, str | os.PathLike) else list(files)
    if not paths:
        raise ValueError("files are empty, expected at least one path")

    def arrays() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for path in map(pathlib.Path, paths):
            is_lines = path.suffix.lower() in (".jsonl", ".ndjson")
            texts = _lines(path, chat) if is_lines else _texts(path, separator)
            count = 0
            for text in texts:
                count += 1
                yield encoded(text, encode, begin, end)
            if not count:
                raise ValueError(f"{path} has no text")

    if folder is None:
        both = list(arrays())
        return from_arrays([ids for ids, _ in both], [mask for _, mask in both])
    return _stored(arrays(), pathlib.Path(folder))


def _texts(path: pathlib.Path, separator: str | None) -> Iterator[TextParts]:
    """The texts of a text file that are not blank."""
    whole = _decoded(path, path.read_bytes().replace(b"\r\n", b"\n").removeprefix(BOM_UTF8))
    for i, text in enumerate(whole.split(separator) if separator else [whole]):
        if text.strip():
            yield TextParts([(text, True)], f"{path}, text {i + 1}")


def _decoded(place: Any, text: bytes) -> str:
    """The text of bytes in UTF-8."""
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{place} is no UTF-8 text: {error}") from error


def _lines(path: pathlib.Path, chat: Chat | None) -> Iterator[TextParts]:
    """The documents of a file of JSON lines."""
    waiting: list[tuple[list[dict], str]] = []  # conversations, which are rendered together
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            place = f"{path}, line {number}"
            if not line.strip():
                continue
            try:
                fields = json.loads(_decoded(place, line.removeprefix(BOM_UTF8)))
            except (json.JSONDecodeError, RecursionError) as error:
                raise ValueError(f"{place} is no JSON: {error}") from error
            if isinstance(fields, Mapping) and "messages" in fields:
                if chat is None:
                    raise ValueError(f"{place} has messages, and no chat template is given")
                waiting.append((_messages(fields["messages"], place), place))
                if len(waiting) == _TOGETHER:
                    yield from _conversations(waiting, chat)
                    waiting = []
            else:
                yield from _conversations(waiting, chat)
                waiting = []
                yield TextParts(_parts(fields, place), place)
    yield from _conversations(waiting, chat)


def _parts(fields: Any, place: str) -> list[tuple[str, bool]]:
    """The parts of a line with a text, or with a prompt and a completion."""
    for names in (("text",), ("prompt", "completion")):
        if isinstance(fields, Mapping) and all(isinstance(fields.get(n), str) for n in names):
            return [(fields[name], name != "prompt") for name in names]
    raise ValueError(
        f'{place} is {shown(fields)}, expected the fields "text", or "prompt" and "completion", '
        'with texts, or "messages"'
    )


def _messages(messages: Any, place: str) -> list[dict]:
    """The messages of a line, checked."""
    is_list = isinstance(messages, list) and messages
    if not is_list or not all(isinstance(m, dict) and "role" in m for m in messages):
        raise ValueError(f"{place} has messages {shown(messages)}, expected a list of them")
    if not any(m["role"] == "assistant" for m in messages):
        raise ValueError(f"{place}: nothing is learnt of it: no message is the assistant's")
    return messages


def _conversations(waiting: list[tuple[list[dict], str]], chat: Chat | None) -> Iterator[TextParts]:
    """Conversations as a template writes them; what an assistant's turn adds is learnt.

    Each answer is found as the text that the template writes after the same messages as a prompt.
    """
    if not waiting or chat is None:
        return
    asked: list[tuple[int, list[dict], bool]] = []
    for i, (messages, _) in enumerate(waiting):
        for k, message in enumerate(messages):
            if message["role"] == "assistant":
                asked += [(i, messages[:k], True), (i, messages[: k + 1], False)]
        asked.append((i, messages, False))
    rendered = chat([messages for _, messages, _ in asked], [prompt for *_, prompt in asked])
    by_line: list[list[str]] = [[] for _ in waiting]
    for (i, *_), text in zip(asked, rendered):
        by_line[i].append(text)
    for (_, place), (*turns, whole) in zip(waiting, by_line):
        parts, at = [], 0
        for before, after in zip(turns[::2], turns[1::2]):
            if not (whole.startswith(after) and after.startswith(before) and len(before) >= at):
                raise ValueError(
                    f"{place}: the chat template writes a turn in another way once more follows, "
                    "so what is learnt of it is not known; give one answer a line"
                )
            parts += [(whole[at : len(before)], False), (after[len(before) :], True)]
            at = len(after)
        yield TextParts([*parts, (whole[at:], False)], place, bare=False)


def _stored(arrays: Iterator[tuple[np.ndarray, np.ndarray]], folder: pathlib.Path) -> Documents:
    """Documents in the token stores of a folder. They pass through temporary files beside it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = functools.partial(tempfile.TemporaryFile, dir=folder.parent)
    with temporary() as all_ids, temporary() as all_masks:
        lengths = []
        for ids, mask in arrays:
            lengths.append(len(ids))
            ids.astype("<i4").tofile(all_ids)
            mask.tofile(all_masks)
        for file in (all_ids, all_masks):
            file.flush()
        ids, mask = np.memmap(all_ids, "<i4", "r"), np.memmap(all_masks, np.bool_, "r")
        Documents(ids, lengths, mask).save(folder)
    return Documents.open(folder)
