"""DiskTier: pages of prefixes in files, bounded in bytes, of which a bad one is a miss.

A page is one file of `jm.save`, named by the keys of the page and of the page before it, so that a
folder says which chains it holds without a file being read.
"""

import fcntl
import os
import pathlib
import re
from collections.abc import Collection
from typing import Any

import jax
import numpy as np

from ..core.byte_counts import nbytes
from ..io.checkpoint import load, save
from .prefix_index import PrefixIndex

FILE = re.compile(r"([0-9a-f]+)-([0-9a-f]*)\.jm")
LEFTOVER = re.compile(r"\.[0-9a-f]+-[0-9a-f]*\.jm\.[0-9a-f]{8}\.tmp")
HEADER_BYTES = 1152  # of a file beside its arrays, at most, and as many an array


class DiskTier:
    """Pages in files of a folder, which are there again when the program starts again.

    What cannot be written is not there, and a file that cannot be read, that is altered or that
    has other tokens than asked for is removed: both are counted, and neither raises.

    Args:
        limit: bytes of the files, of all models that keep pages in this folder.
        policy: says which tail goes first; what is in the folder is used in the order of its times.
        folder: made if it is missing. One program at a time uses it.

    Raises:
        ValueError: the folder is a file, or cannot be made.
    """

    def __init__(self, limit: int, policy: Any, folder: pathlib.Path) -> None:
        self.index, self.folder = PrefixIndex(limit, policy), folder
        self.bad_files = self.failed_writes = 0
        self.last_error = ""
        if not limit:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"Prefixes: path is {str(folder)!r}, expected a folder: {error.strerror}"
            ) from error
        files = []
        for path in folder.glob("??/*"):
            if LEFTOVER.fullmatch(path.name):
                _remove_unlocked(path)
            elif name := FILE.fullmatch(path.name):
                status = path.stat()
                files.append((status.st_mtime_ns, path.name, *name.groups(), status.st_size))
        for _, _, key, parent, size in sorted(files):
            policy.use(bytes.fromhex(key))
            self.index.add(bytes.fromhex(key), bytes.fromhex(parent), size)
        self._make_room(0, [])

    def path(self, key: bytes, parent: bytes) -> pathlib.Path:
        """Where the file of a page is."""
        return self.folder / key.hex()[:2] / f"{key.hex()}-{parent.hex()}.jm"

    def put(
        self,
        key: bytes,
        parent: bytes,
        tokens: np.ndarray,
        page: Any,
        *,
        seconds: float,
        kept: Collection[bytes] = (),
    ) -> list[bytes]:
        """Writes a page if the tails that are not in `kept` leave room for it; keys that went.

        Args:
            key: the page's key.
            parent: the key before it.
            tokens: ids (size,) of the page.
            page: its arrays.
            seconds: that it took to compute.
            kept: keys of files that do not go for it.
        """
        most = nbytes([tokens, page]) + HEADER_BYTES * (2 + len(jax.tree.leaves(page)))
        gone: list[bytes] = []
        if key in self.index or not self._make_room(most, gone, kept):
            return gone
        path = self.path(key, parent)
        try:
            save(path, {"tokens": tokens, "page": page, "seconds": float(seconds)})
            size = path.stat().st_size
        except OSError as error:
            self.failed_writes += 1
            self.last_error = f"{error.strerror}: {path}"
            return gone
        self.index.add(key, parent, size)
        return gone

    def get(self, key: bytes, parent: bytes, tokens: np.ndarray) -> tuple[Any, float] | None:
        """(page, seconds that it took to compute) of a file that is here; None if it is bad."""
        try:
            held = load(self.path(key, parent))
            page, seconds = held["page"], held["seconds"]
            if np.array_equal(held["tokens"], tokens):
                return page, float(seconds)
            self.last_error = f"other tokens: {self.path(key, parent)}"
        except (OSError, ValueError, KeyError, TypeError) as error:
            self.last_error = str(error)
        self.bad_files += 1
        self.remove(key)
        return None

    def remove(self, key: bytes) -> None:
        """Removes the file of a page."""
        parent = self.index.parents[key]
        self.index.remove(key)
        try:
            self.path(key, parent).unlink(missing_ok=True)
        except OSError as error:
            self.last_error = f"{error.strerror}: {self.path(key, parent)}"

    def _make_room(self, size: int, gone: list[bytes], kept: Collection[bytes] = ()) -> bool:
        """Removes tails until `size` bytes more have room; whether they have. `gone` gets keys."""
        if size > self.index.limit:
            return False
        while self.index.used + size > self.index.limit:
            tail = self.index.tail(kept)
            if tail is None:
                return False
            self.remove(tail)
            gone.append(tail)
        return True


def _remove_unlocked(path: pathlib.Path) -> None:
    """Removes a temporary file if the process that wrote it is no longer there."""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)
    except OSError:  # its writer is at work, or has just finished
        pass
