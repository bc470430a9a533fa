"""cache_dir: the folders in which jaxmem keeps compile results and downloaded models."""

import os
import pathlib


def cache_dir(part: str) -> pathlib.Path:
    """The folder of one part of the cache, such as "compiled"; it is made if it is missing.

    The root is the environment variable JAXMEM_CACHE, else `jaxmem` in XDG_CACHE_HOME or ~/.cache.

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
