"""--processes: this process and others run a command together, as `jax.distributed` joins them."""

import concurrent.futures
import os
import sys
import threading
from collections.abc import Callable
from typing import Annotated, Literal

import jax
from tyro.conf import arg

ProcessCount = Annotated[
    int | Literal["auto"] | None,
    arg(
        metavar="N",
        help="This is one of N processes that train together, all of them with the same line but "
        "for --process-id; auto: as the job of a TPU pod, Slurm or Open MPI says.",
    ),
]
ProcessId = Annotated[
    int | None, arg(metavar="I", help="Which of the --processes this is: 0 to N - 1.")
]
Coordinator = Annotated[
    str | None,
    arg(metavar="HOST:PORT", help="Where process 0 is, for the others: a free port on its host."),
]


def join(
    processes: int | Literal["auto"] | None, process_id: int | None, coordinator: str | None
) -> None:
    """Joins the other processes: then JAX has the devices of all of them.

    It waits for the others. None for `processes` is one process, which joins none.

    Raises:
        ValueError: an option is missing, out of range, or given without --processes; or `auto`
            finds no job.
        ConnectionError: the others did not come.

    Example:
        >>> join(2, 2, "localhost:1234")
        Traceback (most recent call last):
        ValueError: --process-id is 2, expected 0 to 1, as there are --processes 2
    """
    given = {"--process-id": process_id, "--coordinator": coordinator}
    present = [name for name, value in given.items() if value is not None]
    if processes is None:
        if present:
            raise ValueError(f"{present[0]} is given without --processes, expected both")
        return
    if processes == "auto":
        if present:
            raise ValueError(f"{present[0]} is given, but --processes auto finds it: leave it out")
        _join_job()
        return
    if processes < 1:
        raise ValueError(f"--processes is {processes}, expected at least 1")
    missing = sorted(set(given) - set(present))
    if missing:
        raise ValueError(f"--processes {processes} wants {' and '.join(missing)}, too")
    if not 0 <= process_id < processes:
        raise ValueError(
            f"--process-id is {process_id}, expected 0 to {processes - 1}, as there are "
            f"--processes {processes}"
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"--coordinator is {coordinator!r}, expected HOST:PORT")
    try:
        _in_a_thread(lambda: _initialize(coordinator, processes, process_id))
    except RuntimeError as error:  # also JAX's own, at the end of its five minutes
        raise ConnectionError(
            f"the {processes} processes did not meet at {coordinator}: {error}"
        ) from error


def _join_job() -> None:
    """Joins the processes of the job that this process belongs to."""
    try:
        _in_a_thread(_initialize)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"--processes auto found no job of several processes here ({error}): give --processes "
            "N, --process-id I and --coordinator HOST:PORT"
        ) from error


def _initialize(*job: str | int) -> None:
    """`jax.distributed.initialize`, which leaves SIGTERM to the command line."""
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(*job)
    if sys.stdout is sys.__stdout__:  # Gloo greets on it, where JSON stands alone
        sys.stdout = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding)
        os.dup2(2, 1)


def _in_a_thread(call: Callable[[], None]) -> None:
    """Calls in another thread: a signal interrupts this one, but no call of a compiled library."""
    future = concurrent.futures.Future()

    def run():
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    future.result()
