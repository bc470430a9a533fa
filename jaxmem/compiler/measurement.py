"""measured: the memory that a program took when it ran, beside what its compiler predicted."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
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
        OSError: the device is a CPU, and the system is not Linux.
        ValueError: the device keeps no memory statistics.

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
    [device, *_] = next((x.devices() for x in jax.tree.leaves(args)), jax.local_devices())
    read = _resident if device.platform == "cpu" else lambda: _in_use(device)
    before, _ = read()
    if device.platform == "cpu":
        _RESET.write_text("5")  # resets the peak to the bytes that are resident now
    jax.block_until_ready(run(*args))
    return Measured(m.outputs + m.temp - m.aliased, read()[1] - before, m)


def _resident() -> tuple[int, int]:
    """(resident bytes, peak of resident bytes) of this process."""
    lines = dict(line.split(":") for line in _STATUS.read_text().splitlines())
    return tuple(int(lines[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))


def _in_use(device: jax.Device) -> tuple[int, int]:
    """(bytes in use, peak of bytes in use) of an accelerator."""
    stats = device.memory_stats()
    if not stats or "peak_bytes_in_use" not in stats:
        raise ValueError(f"{device} keeps no statistics of its memory")
    return stats["bytes_in_use"], stats["peak_bytes_in_use"]
