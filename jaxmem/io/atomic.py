"""replacing: a file or a directory that appears whole or not at all."""

import contextlib
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterator


@contextlib.contextmanager
def replacing(
    path: pathlib.Path, *, token: str | None = None, replace_directory: bool = False
) -> Iterator[pathlib.Path]:
    """A temporary path beside `path`; it is renamed to `path` when the block ends.

    The block writes a file or a flat directory of files at the temporary path. It is flushed to the
    disk before the rename. When the block raises, `path` is as it was, and the temporary path is
    removed. `token` is the part of the temporary name that is random otherwise. A directory
    replaces another one only with `replace_directory`: the old directory is moved aside first.

    Raises:
        OSError: `path` is a directory, and `replace_directory` is False.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replacing(pathlib.Path(folder, "a.txt")) as temporary:
        ...         _ = temporary.write_text("all of it")
        ...     [(file.name, file.read_text()) for file in pathlib.Path(folder).iterdir()]
        [('a.txt', 'all of it')]
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path, token or secrets.token_hex(4))
    try:
        yield temporary
        directory = temporary.is_dir()
        for part in [*temporary.iterdir(), temporary] if directory else [temporary]:
            flush(part)
        if replace_directory and directory and path.is_dir():
            _swap(temporary, path)
        else:
            os.replace(temporary, path)
        flush(path.parent)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        temporary.unlink(missing_ok=True)


def temporary_path(path: pathlib.Path, token: str) -> pathlib.Path:
    """Where `replacing` with this `token` writes.

    Example:
        >>> temporary_path(pathlib.Path("weights/w.jm"), "0badcafe").name
        '.w.jm.0badcafe.tmp'
    """
    return path.with_name(f".{path.name}.{token}.tmp")


def flush(path: pathlib.Path) -> None:
    """Makes what was written to a file or directory outlive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(path: pathlib.Path, data: bytes) -> None:
    """Writes `data` to `path`; a reader sees all of it, or the file that was there before."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def _swap(temporary: pathlib.Path, path: pathlib.Path) -> None:
    """Puts the directory `temporary` in the place of the directory `path`, which is removed."""
    old = temporary.with_suffix(".old")
    path.rename(old)
    try:
        temporary.rename(path)
    except OSError:
        old.rename(path)
        raise
    if old.is_symlink():  # the directory that a link names is left alone
        old.unlink()
    else:
        shutil.rmtree(old)
