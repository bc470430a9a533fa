"""replacing: a file or a directory that appears whole or not at all."""

import contextlib
import ctypes
import errno
import fcntl
import os
import pathlib
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator

_TEMPORARY = re.compile(r"\.(.*)\.[0-9a-f]{8}\.tmp", re.DOTALL)  # names of `temporary_path`


@contextlib.contextmanager
def replacing(
    path: pathlib.Path,
    *,
    token: str | None = None,
    directory: bool = False,
    replace_directory: bool = False,
    flushed: bool = True,
) -> Iterator[pathlib.Path]:
    """An empty temporary file or directory beside `path`; it becomes `path` when the block ends.

    It is flushed to the disk before it is renamed, unless `flushed` is False, and a file keeps the
    mode of the file that it replaces. When the block raises, `path` is as it was, and what is
    temporary is removed. A writer locks what it writes, so that the next writer of this path
    removes what a killed one left, and nothing of a writer that is still at work: of two at once
    the last one wins, and each is whole.

    Args:
        path: where the file or directory appears.
        token: 8 hexadecimal digits, the part of the temporary name that is random otherwise.
        directory: the block writes a flat directory of files, and `path` does not exist yet.
        replace_directory: the same, and a directory at `path` is replaced: on Linux and macOS the
            two change places at once, and elsewhere the old one is moved aside first.
        flushed: False is for many small files whose readers find damage: nothing waits for the
            disk, and after a power cut, though not after a kill, a file may be cut short.

    Raises:
        OSError: `path` is a directory, and `replace_directory` is False; or the disk is full.

    Example:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replacing(pathlib.Path(folder, "a.txt")) as temporary:
        ...         _ = temporary.write_text("all of it")
        ...     [(file.name, file.read_text()) for file in pathlib.Path(folder).iterdir()]
        [('a.txt', 'all of it')]
    """
    directory = directory or replace_directory
    if not directory and path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "a directory is where a file shall be", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    temporary = temporary_path(path, token or secrets.token_hex(4))
    lock = _create_locked(temporary, directory)
    try:
        yield temporary
        parts = [*temporary.iterdir(), temporary] if directory else [temporary]
        for part in parts if flushed else ():
            flush(part)
        if replace_directory:
            _put_directory(temporary, path)
        else:
            _keep_mode(temporary, path)
            os.replace(temporary, path)
        if flushed:
            flush(path.parent)
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)  # a full disk does not say where
        raise
    finally:
        _remove(temporary)
        os.close(lock)


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


def _create_locked(temporary: pathlib.Path, directory: bool) -> int:
    """Makes an empty file or directory, and returns a handle that locks it until it is closed.

    Another writer may take it for a leftover until it is locked; then it is made again.
    """
    while True:
        try:
            if directory:
                temporary.mkdir()
                handle = os.open(temporary, os.O_RDONLY)
            else:
                handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileNotFoundError:
            if not temporary.parent.exists():
                raise
            continue
        fcntl.flock(handle, fcntl.LOCK_EX)
        if _is_at(handle, temporary):
            return handle
        os.close(handle)


def _is_at(handle: int, path: pathlib.Path) -> bool:
    """Whether `path` still names the file or directory that a handle was opened of."""
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    except FileNotFoundError:
        return False


def _remove_leftovers(path: pathlib.Path) -> None:
    """Removes what writers of `path` left that are no longer there, since nobody locks it."""
    for leftover in path.parent.iterdir():
        match = _TEMPORARY.fullmatch(leftover.name)
        if not match or match[1] != path.name:
            continue
        try:
            handle = os.open(leftover, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:  # its writer has just finished, or it is a link
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(handle, leftover):  # else its writer has made another one of this name
                _remove(leftover)
        except OSError:  # its writer is at work, or the file system has no locks
            pass
        finally:
            os.close(handle)


def _remove(path: pathlib.Path) -> None:
    """Removes a file, a link or a directory, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _keep_mode(temporary: pathlib.Path, path: pathlib.Path) -> None:
    """Gives a new file the mode of the file that it replaces."""
    with contextlib.suppress(FileNotFoundError):
        os.chmod(temporary, stat.S_IMODE(path.stat().st_mode))


def _put_directory(temporary: pathlib.Path, path: pathlib.Path) -> None:
    """Renames a directory to `path`; what was there is at `temporary` afterwards."""
    while True:
        try:
            if not os.path.lexists(path):
                return os.rename(temporary, path)
            return _exchange(temporary, path)
        except OSError as error:  # another writer was faster: it made `path`, or took it away
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                raise
            if not temporary.exists():
                raise


def _exchange(first: pathlib.Path, second: pathlib.Path) -> None:
    """Two paths of one file system change places, at once where the system can."""
    libc = ctypes.CDLL(None, use_errno=True)
    paths = os.fsencode(first), os.fsencode(second)
    if sys.platform == "darwin":
        status = libc.renamex_np(*paths, 2)  # RENAME_SWAP
    else:
        here = -100  # AT_FDCWD: paths are relative to the working directory
        status = libc.renameat2(here, paths[0], here, paths[1], 2)  # RENAME_EXCHANGE
    if status == 0:
        return
    code = ctypes.get_errno()
    if code not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        raise OSError(code, os.strerror(code), str(first), None, str(second))
    aside = first.with_suffix(".old")  # this file system cannot exchange
    os.rename(second, aside)
    try:
        os.rename(first, second)
    except OSError:
        os.rename(aside, second)
        raise
    os.rename(aside, first)
