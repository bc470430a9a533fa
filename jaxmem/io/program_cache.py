"""Compiled programs on disk, so that the next process need not compile them again."""

import contextlib
import os
from collections.abc import Iterator

import jax
from jax.experimental.compilation_cache import compilation_cache

from .disk_cache import cache_dir

MOST_BYTES = 2**30  # of all programs together; those that were not used for longest go first
LEAST_SECONDS = 0.05  # a program that compiles faster is not kept


@contextlib.contextmanager
def kept_programs() -> Iterator[None]:
    """Within the block, JAX keeps compiled programs in the folder "programs" of the cache.

    Nothing changes where JAX has a folder for them already (JAX_COMPILATION_CACHE_DIR), or where
    the folder of the cache cannot be made or written.

    Example:
        >>> with kept_programs():
        ...     jax.config.jax_compilation_cache_dir.endswith("programs")
        True
    """
    folder = _writable_folder() if jax.config.jax_compilation_cache_dir is None else None
    if folder is None:
        yield
        return
    options = {
        "jax_compilation_cache_dir": folder,
        "jax_compilation_cache_max_size": MOST_BYTES,
        "jax_persistent_cache_min_compile_time_secs": LEAST_SECONDS,
        "jax_persistent_cache_min_entry_size_bytes": 0,
        "jax_persistent_cache_enable_xla_caches": "none",
    }
    before = {name: getattr(jax.config, name) for name in options}
    try:
        _set(options)
        yield
    finally:
        _set(before)


def _writable_folder() -> str | None:
    """The folder of programs; None on a read-only disk, where commands run without it."""
    try:
        folder = cache_dir("programs")
    except OSError:
        return None
    return str(folder) if os.access(folder, os.W_OK) else None


def _set(options: dict) -> None:
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # it would go on with the folder that it has opened
