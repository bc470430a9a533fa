"""ResultFolder: results in a folder, one file each, at most so many bytes together."""

import contextlib
import errno
import fcntl
import hashlib
import os
import pathlib
import weakref
from typing import Any

from ..io.atomic import replacing
from . import result_file
from .seconds_per_byte import SecondsPerByte

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class ResultFolder:
    """The disk tier of `Reuse`: files that appear whole, are checked when read, and are bounded.

    A file's name is the hash of its key and the microseconds that the result took, so that the
    order of eviction survives a restart; how often a result was used does not. One process at a
    time has a folder. Bytes are those of the files.

    Raises:
        ValueError: another process, or another `Reuse`, has the folder.
    """

    def __init__(self, path: pathlib.Path, capacity: int) -> None:
        self.path, self.order = path, SecondsPerByte(capacity)
        self.damaged = self.unwritten = 0  # files that were no results; results without a place
        path.mkdir(parents=True, exist_ok=True)
        handle = os.open(path / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        weakref.finalize(self, os.close, handle)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"path is {path}, which another Reuse has open") from error
        files = sorted(path.glob("??/*"), key=lambda file: file.stat().st_mtime_ns)
        for file in files:
            digest, _, rest = file.name.partition(".")
            micros = rest.removesuffix(".result")
            if file.name.startswith(".") or not micros.isdigit():
                file.unlink()  # a writer was killed
                continue
            gone = self.order.add(digest, file.stat().st_size, int(micros) / 1e6)
            for other in gone:  # the capacity is less than it was
                self._unlink(other)

    def __contains__(self, key: str) -> bool:
        return _digest(key) in self.order

    def put(self, key: str, tree: Any, seconds: float) -> None:
        """Writes a result. If it does not fit, or the disk is full, there is none afterwards."""
        data, digest = result_file.pack(key, tree), _digest(key)
        self._remove(digest)
        seconds = int(seconds * 1e6) / 1e6
        gone = self.order.add(digest, len(data), seconds)
        for other in gone:
            if other != digest:
                self._unlink(other)
        if digest in gone:
            self.unwritten += 1
            return
        file = self._file(digest, seconds)
        try:
            with replacing(file, flushed=False) as temporary:
                temporary.write_bytes(data)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            self.order.remove(digest)
            self.unwritten += 1

    def get(self, key: str) -> tuple[Any, float] | None:
        """(the result, the seconds it took), or None; a file that is damaged is removed."""
        digest = _digest(key)
        if digest not in self.order:
            return None
        seconds = self.order.seconds(digest)
        try:
            tree = result_file.unpack(key, self._file(digest, seconds).read_bytes())
        except (OSError, ValueError):
            self.damaged += 1
            self._remove(digest)
            return None
        self.order.touch(digest)
        return tree, seconds

    def evict(self, nbytes: int) -> int:
        """Removes the files of least worth, at least `nbytes` of them; returns their bytes."""
        before = self.order.used
        for digest in self.order.evict(nbytes):
            self._unlink(digest)
        return before - self.order.used

    def _remove(self, digest: str) -> None:
        if digest in self.order:
            self._unlink(digest)
            self.order.remove(digest)

    def _unlink(self, digest: str) -> None:
        for file in (self.path / digest[:2]).glob(f"{digest}.*"):
            with contextlib.suppress(OSError):
                file.unlink()

    def _file(self, digest: str, seconds: float) -> pathlib.Path:
        return self.path / digest[:2] / f"{digest}.{round(seconds * 1e6)}.result"


def _digest(key: str) -> str:
    return hashlib.blake2b(key.encode(), digest_size=20).hexdigest()
