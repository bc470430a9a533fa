"""replacing: a file or a directory that appears whole or not at all."""

import contextlib
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterator


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary path beside `path`, which takes its place once the block is done.

    What was written, a file or a directory of files, is on the disk before it is renamed. When the
    block raises, `path` is as it was and nothing is left. A directory replaces no directory.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replacing(pathlib.Path(folder, "a.txt")) as temporary:
        ...         _ = temporary.write_text("all of it")
        ...     [(file.name, file.read_text()) for file in pathlib.Path(folder).iterdir()]
        [('a.txt', 'all of it')]
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        for part in [*temporary.iterdir(), temporary] if temporary.is_dir() else [temporary]:
            flush(part)
        os.replace(temporary, path)
        flush(path.parent)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        temporary.unlink(missing_ok=True)


def flush(path: pathlib.Path) -> None:
    """Makes what was written to a file or directory outlive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(path: pathlib.Path, data: bytes) -> None:
    """Writes `data` to `path` so that a reader sees all of it or what was there before."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
