"""replacing_together: several processes write one file or directory, which appears whole or not.

Each process writes its own parts, into a file system that all processes share.
Process 0 creates the temporary file and renames it. A single process needs no agreement, so for
one process these functions only call `replacing`.
"""

import concurrent.futures
import contextlib
import os
import pathlib
import secrets
import sys
import time
import zlib
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from .atomic import replacing, temporary_path

ASK_SECONDS = 0.5  # between two questions whether process 0 has a text


@contextlib.contextmanager
def replacing_together(
    path: pathlib.Path, plan: bytes, *, replace_directory: bool = False
) -> Iterator[pathlib.Path]:
    """An empty temporary file, the same for all processes; it is renamed to `path` at the end.

    `plan` describes what all processes together write. With `replace_directory` it is a directory.

    Raises:
        ValueError: the processes' plans differ.
    """
    several, first = jax.process_count() > 1, jax.process_index() == 0
    token = secrets.randbits(32)
    if several:
        token = _agreed(token, zlib.crc32(plan))
    name = f"{token:08x}"
    if not first:
        multihost_utils.sync_global_devices("jaxmem.save: the file is there")
        yield temporary_path(path, name)
    else:
        with replacing(path, token=name, replace_directory=replace_directory) as temporary:
            if several:
                multihost_utils.sync_global_devices("jaxmem.save: the file is there")
            yield temporary
    if several:
        multihost_utils.sync_global_devices("jaxmem.save: the file is in place")


def largest(numbers: np.ndarray) -> np.ndarray:
    """The elementwise maximum of the processes' arrays, the same on each process."""
    if jax.process_count() == 1:
        return numbers
    return multihost_utils.process_allgather(numbers).max(axis=0)


def from_first(make: Callable[[], str]) -> str:
    """The text that `make` gives in process 0, in every process; the others do not call it.

    It may take minutes. Until it is there the processes ask each other twice a second, because a
    collective that one of them comes to late fails on CPUs.

    Raises:
        ConnectionError: `make` raised in process 0, which raises that; the others stop, too.
    """
    if jax.process_count() == 1:
        return make()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        future = pool.submit(make) if jax.process_index() == 0 else None
        length, is_failed = 0, False
        while not (length or is_failed):
            length, is_failed = largest(np.array(_state(future), np.int32)).tolist()
            time.sleep(ASK_SECONDS)
    if is_failed and future is None:
        raise ConnectionError("process 0 failed and says why; this one stops, too")
    text = future.result().encode() if future is not None else bytes(length)
    return bytes(largest(np.frombuffer(text, np.uint8))).decode()


def _state(future: concurrent.futures.Future | None) -> tuple[int, int]:
    """(the bytes of a result, 0 as long as there is none; whether there never will be one)."""
    if future is None or not future.done():
        return 0, 0
    is_failed = future.exception() is not None
    return (0 if is_failed else len(future.result().encode())), int(is_failed)


def wait_for_all(what: str) -> None:
    """Returns when every process is here; `what` names the place."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


@contextlib.contextmanager
def lost_process_named() -> Iterator[None]:
    """If a program that several processes run together fails, says that one of them may be gone.

    Raises:
        ConnectionError: a program of several processes failed; with what JAX says of it.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        count = jax.process_count()
        if count == 1:
            raise
        raise ConnectionError(
            f"process {jax.process_index()} of {count} cannot go on, as it seems because another "
            f"one is gone: start all {count} again ({error})"
        ) from error


def leave(code: int) -> None:
    """Ends this process at once if it is one of several and `code` is not 0; else it returns.

    At a usual end JAX waits for the others, for minutes if one of them is lost.
    """
    if code and jax.distributed.is_initialized():
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):  # nobody reads it, or it is closed
                stream.flush()
        os._exit(code)


def _agreed(token: int, crc: int) -> int:
    """Process 0's token, if all processes have the same `crc` of their plan."""
    answers = multihost_utils.process_allgather(np.array([token, crc], np.uint32))
    for i, (_, other) in enumerate(answers.tolist()):
        if other != answers[0, 1]:
            raise ValueError(f"process {i} saves another tree than process 0, or places it apart")
    return int(answers[0, 0])
