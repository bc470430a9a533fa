"""measured: the memory that a program took when it ran, beside what its compiler predicted."""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from ..core.arguments import ARGNUMS, takes
from .memory_analysis import Memory, memory

_STATUS, _RESET = pathlib.Path("/proc/self/status"), pathlib.Path("/proc/self/clear_refs")


@dataclasses.dataclass(frozen=True)
class Measured:
    """Bytes besides the arguments: predicted by the compiler, and grown in one run."""

    predicted: int
    grown: int
    memory: Memory = dataclasses.field(repr=False)

    @property
    def error(self) -> float:
        """(predicted - grown) / grown.

        Example:
            >>> Measured(150, 100, None).error
            0.5
        """
        return (self.predicted - self.grown) / max(self.grown, 1)


@takes(donate_argnums=ARGNUMS)
def measured(fn: Callable, *args: Any, donate_argnums: int | Sequence[int] = ()) -> Measured:
    """Runs `fn(*args)` once and measures by how many bytes memory grew at most.

    On CPU the measure is the process's peak resident set (Linux). It misses pages that the
    allocator kept from earlier work, and counts other threads: measure in a fresh process, with a
    program that takes hundreds of megabytes. On an accelerator the measure is the peak of
    `device.memory_stats()` minus the bytes in use before. That peak is the process's, so a fresh
    process is best there too. Donated arguments are deleted afterwards.

    Raises:
        ValueError: the system keeps no statistics of the device's memory, or of the process's.

    Example:
        >>> import jax.numpy as jnp
        >>> taken = measured(lambda x: jnp.outer(x, x), jnp.ones(5000))
        >>> taken.predicted, taken.grown > 5e7
        (100000000, True)
    """
    donate = (donate_argnums,) if isinstance(donate_argnums, int) else tuple(donate_argnums)
    is_jitted = isinstance(fn, jax.stages.Wrapped) and not donate
    jitted = fn if is_jitted else jax.jit(fn, donate_argnums=donate)
    args = jax.block_until_ready(jax.tree.map(jax.numpy.asarray, args))
    m = memory(jitted, *args)
    run = jitted.lower(*args).compile()
    with growth(args) as growing:
        jax.block_until_ready(run(*args))
    if growing.nbytes is None:
        raise ValueError(f"{jax.devices()[0]} keeps no statistics of its memory")
    return Measured(m.outputs + m.temp - m.aliased, growing.nbytes, m)


@dataclasses.dataclass
class Growth:
    """By how many bytes memory grew at most; None before the end, and if nothing says so."""

    nbytes: int | None = None


@contextlib.contextmanager
def growth(args: Any) -> Iterator[Growth]:
    """Measures the block, on the device that the arrays of `args` are on (see `measured`).

    What the block computes must be ready when it ends.
    """
    [device, *_] = next((x.devices() for x in jax.tree.leaves(args)), jax.local_devices())
    is_cpu = device.platform == "cpu"
    read = _resident if is_cpu else lambda: _in_use(device)
    growing, before = Growth(), read()
    if is_cpu and before:
        _RESET.write_text("5")  # resets the peak to the bytes that are resident now
    yield growing
    if before:
        growing.nbytes = read()[1] - before[0]


def _resident() -> tuple[int, int] | None:
    """(resident bytes, peak of resident bytes) of this process; None if it is not on Linux."""
    if not _RESET.exists():
        return None
    lines = dict(line.split(":") for line in _STATUS.read_text().splitlines())
    return tuple(int(lines[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))


def _in_use(device: jax.Device) -> tuple[int, int] | None:
    """(bytes in use, peak of bytes in use) of an accelerator; None if it does not count them."""
    stats = device.memory_stats()
    if not stats or "peak_bytes_in_use" not in stats:
        return None
    return stats["bytes_in_use"], stats["peak_bytes_in_use"]


def available_bytes() -> int:
    """Bytes of main memory that a process may still take, as Linux says; elsewhere all of it."""
    info = pathlib.Path("/proc/meminfo")
    if info.exists():
        lines = dict(line.split(":") for line in info.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
