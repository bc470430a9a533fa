"""The path that a command writes, checked before any work."""

import os
import pathlib


def check_out(path: str | pathlib.Path, *, makes_parents: bool = False) -> pathlib.Path:
    """The path, if a file or a directory can be written there.

    `makes_parents` says that missing parent directories will be made.

    Raises:
        FileNotFoundError: the parent directory is missing, and will not be made.
        ValueError: a parent is no directory, or may not be written to.

    Example:
        >>> import tempfile
        >>> check_out(f"{tempfile.mkdtemp()}/recipe.json").name
        'recipe.json'
    """
    path = pathlib.Path(path)
    parent = path.absolute().parent
    while makes_parents and not os.path.lexists(parent):
        parent = parent.parent
    if not os.path.lexists(parent):
        raise FileNotFoundError(f"no directory {path.parent} to write {path.name} in")
    if not parent.is_dir():
        raise ValueError(f"{path} cannot be written: {parent} is no directory")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ValueError(f"{path} cannot be written: {parent} is not writable")
    return path


def check_out_file(path: str | pathlib.Path) -> pathlib.Path:
    """The same for a file, which replaces a file that is there.

    Raises:
        IsADirectoryError: a directory is there.
        FileNotFoundError, ValueError: as `check_out`.
    """
    path = check_out(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory, expected a file to write")
    return path


def check_out_folder(path: str | pathlib.Path) -> pathlib.Path:
    """The same for a folder, which is made with its parents or filled further.

    Raises:
        NotADirectoryError: a file is there.
        ValueError: as `check_out`.
    """
    path = check_out(path, makes_parents=True)
    if os.path.lexists(path) and not path.is_dir():
        raise NotADirectoryError(f"{path} is a file, expected a folder to write in")
    return path
