"""Where jaxmem keeps what it would rather not make twice, and how a file there is written whole."""

import os
import pathlib


def cache_dir(part: str) -> pathlib.Path:
    """The folder for `part` of the cache, made if it is missing.

    The root is the environment's JAXMEM_CACHE, else `jaxmem` in XDG_CACHE_HOME, else in ~/.cache.

    Example:
        >>> import os, tempfile
        >>> from unittest import mock
        >>> with mock.patch.dict(os.environ, JAXMEM_CACHE=tempfile.mkdtemp()):
        ...     cache_dir("compiled").name
        'compiled'
    """
    root = os.environ.get("JAXMEM_CACHE")
    if not root:
        home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        root = pathlib.Path(home) / "jaxmem"
    folder = pathlib.Path(root).expanduser() / part
    folder.mkdir(parents=True, exist_ok=True)
    return folder
