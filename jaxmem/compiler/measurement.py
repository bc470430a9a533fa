"""measured: what a program really took when it ran, beside what its compiler said."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax

from .footprint import Memory, memory

_STATUS, _RESET = pathlib.Path("/proc/self/status"), pathlib.Path("/proc/self/clear_refs")


@dataclasses.dataclass(frozen=True)
class Measured:
    """Bytes beyond the arguments, which were there before: predicted, and grown in one run."""

    predicted: int
    grown: int
    memory: Memory = dataclasses.field(repr=False)

    @property
    def error(self) -> float:
        """How far the prediction was off, as a share of what was taken.

        Example:
            >>> Measured(150, 100, None).error
            0.5
        """
        return (self.predicted - self.grown) / max(self.grown, 1)


def measured(fn: Callable, *args: Any, donate_argnums: int | Sequence[int] = ()) -> Measured:
    """Runs `fn(*args)` once and says by how much memory grew at its fullest moment.

    On CPU that is the process's peak resident set (Linux), so pages count that the allocator had
    kept from before as free, and so do other threads: ask in a fresh process, of a program that
    takes hundreds of megabytes. On an accelerator it is the peak of `device.memory_stats()` over
    what was in use; the peak is the process's, so there, too, a fresh one tells most. Donated
    arguments are gone afterwards.

    Raises:
        OSError: on CPU, and not Linux.
        ValueError: the device keeps no statistics.

    Example:
        >>> import jax.numpy as jnp
        >>> taken = measured(lambda x: jnp.outer(x, x), jnp.ones(5000))
        >>> taken.predicted, taken.grown > 5e7
        (100000000, True)
    """
    donate = (donate_argnums,) if isinstance(donate_argnums, int) else tuple(donate_argnums)
    own = isinstance(fn, jax.stages.Wrapped) and not donate
    jitted = fn if own else jax.jit(fn, donate_argnums=donate)
    args = jax.block_until_ready(jax.tree.map(jax.numpy.asarray, args))
    m = memory(jitted, *args)
    run = jitted.lower(*args).compile()
    [device, *_] = next((x.devices() for x in jax.tree.leaves(args)), jax.local_devices())
    read = _resident if device.platform == "cpu" else lambda: _in_use(device)
    before, _ = read()
    if device.platform == "cpu":
        _RESET.write_text("5")  # the peak starts again at what is resident now
    jax.block_until_ready(run(*args))
    return Measured(m.outputs + m.temp - m.aliased, read()[1] - before, m)


def _resident() -> tuple[int, int]:
    """(resident bytes, the most there were) of this process."""
    lines = dict(line.split(":") for line in _STATUS.read_text().splitlines())
    return tuple(int(lines[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))


def _in_use(device: jax.Device) -> tuple[int, int]:
    stats = device.memory_stats()
    if not stats or "peak_bytes_in_use" not in stats:
        raise ValueError(f"{device} keeps no statistics of its memory")
    return stats["bytes_in_use"], stats["peak_bytes_in_use"]
