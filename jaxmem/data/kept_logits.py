"""KeptLogits: what a teacher says of each token, k ids and their log-probabilities, on disk.

A file is: a head of fixed size; then rows of as many bytes, each with its tokens and a CRC-32. A
token is its ids (`kept_codes`), a byte of each log-probability, and two bytes of what is not kept.
"""

import os
import pathlib
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from ..core.arguments import ITERABLE, POSITIVE, Kind, shown, takes
from ..io.atomic import replacing
from . import kept_codes
from .token_store import FILE, MOST_VOCABULARY

MAGIC, VERSION = b"JMKEPTLG", 1
HEAD = struct.Struct("<8sHHIIIQdI")  # magic, version, kind, k, vocabulary, width, rows, T, CRC-32
KINDS = ("top", "sampled")
FIELDS = ("teacher_ids", "teacher_log_probs", "teacher_rest")
_TEMPERATURE = Kind("a number above 0", lambda x: isinstance(x, int | float) and 0 < x < np.inf)


class KeptLogits(Sequence):
    """The rows of a file that `write_kept` wrote, which `jm.train.kept_divergence` learns from.

    `kept[i]` is a dict of "teacher_ids" (width, k) i32, "teacher_log_probs" (width, k) f32 and
    "teacher_rest" (width,) f32: the probability of all other ids if the kind is "top", else the
    threshold of the sample. `options` are what `kept_divergence` takes. JAX is not needed to read
    it. It is a `RandomAccessDataSource` of grain, and is pickled as its path.

    Raises:
        ValueError: the file holds no kept logits, is damaged, or of a newer version; the message
            has its name. Damage in a row is found when the row is read.
        OSError: the file cannot be read.
    """

    @takes(path=FILE)
    def __init__(self, path: str | os.PathLike):
        self.path = pathlib.Path(path)
        with self.path.open("rb") as file:
            head, self.nbytes = file.read(HEAD.size), os.fstat(file.fileno()).st_size
        if len(head) < HEAD.size or not head.startswith(MAGIC):
            raise self._error("it holds no kept logits; jm.data.write_kept writes them")
        _, version, kind, k, vocabulary, width, rows, temperature, crc = HEAD.unpack(head)
        if version != VERSION:
            raise self._error(f"it has version {version}, expected {VERSION}")
        possible = 0 < k <= vocabulary <= MOST_VOCABULARY and width and kind < len(KINDS)
        if zlib.crc32(head[:-4]) != crc or not possible:
            raise self._error("it is damaged: its head has another CRC-32")
        self.k, self.vocabulary, self.width, self._rows = k, vocabulary, width, rows
        self.kind, self.temperature = KINDS[kind], temperature
        self._row_nbytes = width * _token_nbytes(k, vocabulary) + 4
        if self.nbytes != HEAD.size + rows * self._row_nbytes:
            raise self._error(f"it is damaged: {self.nbytes} bytes are not those of {rows} rows")

    @property
    def options(self) -> dict[str, Any]:
        """Vocabulary, kind and temperature, as `jm.train.kept_divergence` takes them."""
        names = ("vocabulary", "kind", "temperature")
        return {name: getattr(self, name) for name in names}

    def __len__(self) -> int:
        return self._rows

    def __repr__(self) -> str:
        return (
            f"KeptLogits({str(self.path)!r}): {len(self)} rows of {self.width} tokens, {self.k} of "
            f"{self.vocabulary} ids each"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["path"])

    def __getitem__(self, at: Any) -> dict[str, np.ndarray]:
        row = range(len(self))[at]
        with self.path.open("rb") as file:
            file.seek(HEAD.size + row * self._row_nbytes)
            data = file.read(self._row_nbytes)
        if len(data) != self._row_nbytes or zlib.crc32(data[:-4]) != _U4.unpack(data[-4:])[0]:
            raise self._error(f"it is damaged: row {row} has another CRC-32")
        tokens = np.frombuffer(data[:-4], np.uint8).reshape(self.width, -1)
        try:
            ids = kept_codes.decode_ids(tokens[:, : -self.k - 2], self.k, self.vocabulary)
        except ValueError as error:
            raise self._error(str(error)) from error
        logs = kept_codes.decode_logs(tokens[:, -self.k - 2 : -2])
        rest = kept_codes.decode_rest(np.ascontiguousarray(tokens[:, -2:]).view("<u2")[:, 0])
        if self.kind == "top":  # rounding changed their sum, which is 1 without the rest
            kept = np.exp(logs).sum(1, keepdims=True)
            logs = logs + np.log(np.maximum(1 - rest[:, None], np.float32(1e-7)) / kept)
        return dict(zip(FIELDS, (ids, logs, rest)))

    def _error(self, text: str) -> ValueError:
        return ValueError(f"{self.path}: {text}")


@takes(path=FILE, kept=ITERABLE, vocabulary=POSITIVE, temperature=_TEMPERATURE)
def write_kept(
    path: str | os.PathLike,
    kept: Iterable[Mapping[str, Any]],
    *,
    vocabulary: int,
    kind: Literal["top", "sampled"] = "top",
    temperature: float = 1.0,
    seed: int = 0,
) -> int:
    """Writes what a teacher says of each token to a file; returns the file's size in bytes.

    A kept logit takes 2.5 bytes for 64 of a vocabulary of 49,152 and 2.7 of 128,256. The file
    appears whole or not at all, and memory does not grow with the number of rows.

    Args:
        path: the file.
        kept: dicts as `jm.train.keep_logits` returns them, of one row (width, k) or several
            (rows, width, k), in the order of the rows that a student learns from. All have one
            width and one k.
        vocabulary: ids of the teacher.
        kind: "top" or "sampled", what was kept.
        temperature: what the teacher's logits were divided by.
        seed: of the rounding of log-probabilities to bytes, which is right on average.

    Raises:
        ValueError: there are no rows, they differ in width or k, an id is outside the vocabulary or
            stands twice in a token, or a log-probability is above 0 or NaN; no such `kind`.

    Example:
        >>> import pathlib, tempfile
        >>> import jaxmem as jm
        >>> said = {"teacher_ids": np.array([[2, 7]]), "teacher_rest": np.array([0.25]),
        ...         "teacher_log_probs": np.log([[0.5, 0.25]])}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     size = jm.data.write_kept(pathlib.Path(folder, "kept"), [said], vocabulary=8)
        ...     row = jm.data.KeptLogits(pathlib.Path(folder, "kept"))[0]
        >>> size, row["teacher_ids"].tolist(), row["teacher_rest"].round(3).tolist()
        (53, [[2, 7]], [0.25])
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {shown(kind)}, expected 'top' or 'sampled'")
    if vocabulary > MOST_VOCABULARY:
        raise ValueError(f"vocabulary is {vocabulary}, expected at most {MOST_VOCABULARY}")
    path, random = pathlib.Path(path), np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        with temporary.open("r+b") as file:
            file.seek(HEAD.size)
            rows, shape = 0, None
            for part in kept:
                for row in _rows(part):
                    if shape not in (None, row[0].shape):
                        raise ValueError(f"a row is of {row[0].shape}, and the first of {shape}")
                    shape = row[0].shape
                    data = _encoded(*row, vocabulary, random)
                    file.write(data + _U4.pack(zlib.crc32(data)))
                    rows += 1
            if shape is None:
                raise ValueError("there are no rows, expected at least one")
            width, k = shape
            head = HEAD.pack(
                MAGIC, VERSION, KINDS.index(kind), k, vocabulary, width, rows, temperature, 0
            )
            file.seek(0)
            file.write(head[:-4] + _U4.pack(zlib.crc32(head[:-4])))
        return temporary.stat().st_size


_U4 = struct.Struct("<I")


def _token_nbytes(k: int, vocabulary: int) -> int:
    return kept_codes.id_nbytes(k, vocabulary) + k + 2


def _rows(part: Mapping[str, Any]) -> Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The ids (width, k), the log-probabilities (width, k) and the rest (width,) of each row."""
    if not isinstance(part, Mapping):
        raise TypeError(f"kept has {shown(part)}, expected mappings of jm.train.keep_logits")
    missing = [name for name in FIELDS if name not in part]
    if missing:
        raise ValueError(f"kept logits have no {missing[0]!r}; jm.train.keep_logits makes them")
    ids, logs, rest = (np.asarray(part[name]) for name in FIELDS)
    if ids.ndim not in (2, 3) or logs.shape != ids.shape or rest.shape != ids.shape[:-1]:
        raise ValueError(
            f"kept logits have shapes {ids.shape}, {logs.shape} and {rest.shape}, expected "
            "(rows, width, k) twice and (rows, width)"
        )
    flat = lambda x: x.reshape(-1, *x.shape[ids.ndim - 2 :])
    return zip(flat(ids), flat(logs.astype(np.float64)), flat(rest.astype(np.float64)))


def _encoded(ids, logs, rest, vocabulary: int, random: np.random.Generator) -> bytes:
    """The bytes of a row's tokens."""
    order = np.argsort(ids, axis=1)
    ids, logs = (np.take_along_axis(x, order, 1) for x in (ids.astype(np.int64), logs))
    if not ids.size or ids.min() < 0 or ids.max() >= vocabulary or (np.diff(ids) < 1).any():
        raise ValueError(f"ids of a token are not 0 to {vocabulary - 1}, each once")
    if not (logs <= 1e-3).all() or not ((rest >= -1e-3) & (rest <= 1 + 1e-3)).all():
        raise ValueError("a log-probability is above 0, or a rest outside 0 to 1")
    codes = [kept_codes.encode_ids(ids, vocabulary), kept_codes.encode_logs(logs, random)]
    rest = kept_codes.encode_rest(np.clip(rest, 0, 1))
    return np.hstack([*codes, rest[:, None].view(np.uint8)]).tobytes()
