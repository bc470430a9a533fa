"""AnswerFile: a file of answers in order, which a killed run goes on with."""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from ..io.atomic import replacing
from ..io.json_fields import parse_object
from .answer import Answer

_KEY = "request"  # the field of a line that says which request it answers


def request_key(request: Any, *context: Any) -> str:
    """What names a request with all of its options, 16 hexadecimal digits.

    Args:
        request: a dataclass of values that JSON has.
        context: what else the answer depends on, such as the name of the model.

    Example:
        >>> from jaxmem.serving.generation_request import GenerationRequest
        >>> a, b = (GenerationRequest("a", "Hello", seed=seed) for seed in (0, 1))
        >>> request_key(a) == request_key(a), request_key(a) == request_key(b)
        (True, False)
    """
    said = json.dumps([dataclasses.asdict(request), *context], sort_keys=True, default=repr)
    return hashlib.blake2b(said.encode(), digest_size=8).hexdigest()


class AnswerFile:
    """Answers as JSON lines, in the order of their requests, though they come in another order.

    Each answer is appended to PATH.part, a line at a time. `close` writes all of them to PATH, in
    order, and removes PATH.part. A run that was killed leaves PATH.part: of it, or of PATH, the
    next run takes the answers that are whole, and only the others are computed.

    Args:
        path: where the answers go.
        keys: `request_key` of each request, in order.

    Raises:
        ValueError: two keys are the same; a file that is there has an answer to none of these
            requests, or is none of this class.
        OSError: a file cannot be read or written.

    Example:
        >>> import pathlib, tempfile
        >>> from jaxmem.serving.answer import Answer
        >>> path = pathlib.Path(tempfile.mkdtemp(), "answers.jsonl")
        >>> AnswerFile(path, ["k1", "k2"]).put("k2", Answer("b", "second"))  # ... and is killed
        >>> file = AnswerFile(path, ["k1", "k2"])
        >>> file.missing
        ['k1']
        >>> file.put("k1", Answer("a", "first"))
        >>> file.close()
        >>> path.read_text().count("\\n")
        2
    """

    def __init__(self, path: str | os.PathLike, keys: Sequence[str]):
        self.path, self.keys = pathlib.Path(path), list(keys)
        if len(set(self.keys)) != len(self.keys):
            raise ValueError("two requests have the same key, expected a key for each")
        self.part = self.path.with_name(self.path.name + ".part")
        self._lines = self._whole_lines(self.path) | self._whole_lines(self.part, cut=True)

    @property
    def missing(self) -> list[str]:
        """The keys without an answer, in order."""
        return [key for key in self.keys if key not in self._lines]

    def put(self, key: str, answer: Answer) -> None:
        """Adds an answer, and returns when the disk has it."""
        line = json.dumps({**answer.fields(), _KEY: key}) + "\n"
        with self.part.open("ab") as file:
            file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
        self._lines[key] = line

    def close(self) -> None:
        """Writes the answers in order, whole or not at all.

        Raises:
            ValueError: a request has no answer yet.
        """
        if self.missing:
            raise ValueError(f"{len(self.missing)} of {len(self.keys)} requests have no answer yet")
        with replacing(self.path) as temporary:
            temporary.write_text("".join(self._lines[key] for key in self.keys), encoding="utf-8")
        self.part.unlink(missing_ok=True)

    def _whole_lines(self, path: pathlib.Path, cut: bool = False) -> dict[str, str]:
        """{key: line} of a file; what follows its last newline is no line, and is cut off."""
        if not path.exists():
            return {}
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        found = {}
        for number, line in enumerate(whole.decode("utf-8", errors="replace").splitlines(), 1):
            place = f"{path}, line {number}"
            fields = parse_object(line, place)
            if fields.get(_KEY) not in self.keys:
                raise ValueError(
                    f"{place} answers none of these requests as they are now; choose another file, "
                    "or delete this one"
                )
            found[fields[_KEY]] = line + "\n"
        if cut and whole != data:
            with path.open("r+b") as file:
                file.truncate(len(whole))
        return found
