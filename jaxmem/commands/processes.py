"""--processes: this process and others run a command together, as `jax.distributed` joins them."""

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
        jax.distributed.initialize(coordinator, processes, process_id)
    except RuntimeError as error:  # also JAX's own, at the end of its five minutes
        raise ConnectionError(
            f"the {processes} processes did not meet at {coordinator}: {error}"
        ) from error


def _join_job() -> None:
    """Joins the processes of the job that this process belongs to."""
    try:
        jax.distributed.initialize()
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"--processes auto found no job of several processes here ({error}): give --processes "
            "N, --process-id I and --coordinator HOST:PORT"
        ) from error
