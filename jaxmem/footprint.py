"""memory: arguments + outputs + temp - aliased, as the target's own compiler says."""

import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding

from .compile_worker import sizes
from .compiling import compile_for_tpu, versions

_MIB = 2**20
_PROBE = 64 * _MIB  # too little for almost any program: the compiler says at once what is needed

# Per device: GiB the compiler counts on (what it reserves is taken off), and what it wants to be
# told besides the topology.
_CHIPS = {
    "v2": (7.48, {}),
    "v3": (15.48, {}),
    "v4": (30.75, {"chip_config_name": "megacore"}),
    "v5e": (15.75, {}),
    "v5p": (95.73, {}),
    "v6e": (31.24, {}),
    "tpu7x": (94.74, {}),
}
_KNOWN = f"'cpu' or 'tpu CHIP:TOPOLOGY' with CHIP one of {', '.join(_CHIPS)}, as 'tpu v5e:1x1'"


@dataclasses.dataclass(frozen=True)
class Memory:
    """What a compiled program takes: bytes on one device, and `host` bytes apart.

    Where the compiler gave up, it names no parts, only what the program needs: then `exact` is
    False, the parts are None, and `estimate` holds its figure, which is 0.8 to 1.0 of the truth.

    Example:
        >>> m = Memory("tpu v5e:1x1", 600, 200, 300, 100, 0, 9, limit=2000, fits=True)
        >>> m.peak, m.needed, m.exact
        (1000, 1000, True)
        >>> Memory("tpu v5e:1x1", limit=2000, fits=False, estimate=2500).needed
        2500
    """

    device: str
    arguments: int | None = None
    outputs: int | None = None
    temp: int | None = None
    aliased: int | None = None
    host: int | None = None
    code: int | None = None
    limit: int | None = None
    fits: bool = True
    estimate: int | None = None
    versions: dict[str, str] = dataclasses.field(default_factory=dict, hash=False)

    @property
    def exact(self) -> bool:
        """Whether this was compiled to the end."""
        return self.estimate is None

    @property
    def peak(self) -> int:
        """arguments + outputs + temp - aliased, or the estimate where the compiler gave up."""
        if self.estimate is not None:
            return self.estimate
        return self.arguments + self.outputs + self.temp - self.aliased

    @property
    def needed(self) -> int:
        """Bytes of device memory the program asks for: the peak."""
        return self.peak

    def __str__(self) -> str:
        parts = ("arguments", "outputs", "temp", "aliased", "peak", "limit", "host", "code")
        rows = [(name, getattr(self, name)) for name in parts]
        lines = [_row(name, n) for name, n in rows if n is not None]
        how = "compiled" if self.exact else "the compiler's estimate"
        versions = ", ".join(f"{k} {v}" for k, v in self.versions.items())
        verdict = "fits" if self.fits else "does not fit"
        return "\n".join([f"{self.device}: {verdict} ({how}; {versions})", *lines])

    def to_json(self) -> str:
        """Every figure, with `peak` and `exact`, as JSON."""
        fields = dataclasses.asdict(self)
        return json.dumps(fields | {"peak": self.peak, "exact": self.exact}, indent=2)


def memory(
    fn: Callable,
    *args: Any,
    device: str = "cpu",
    donate_argnums: int | Sequence[int] = (),
    limit: int | None = None,
    quick: bool = False,
    timeout: float = 1800.0,
) -> Memory:
    """What `fn(*args)` takes on `device`, from a real compile; nothing is run and no TPU needed.

    Arguments may be concrete or abstract. On several chips shard them over a mesh of as many
    devices, which may be an `AbstractMesh`; figures are for one device. `fn` may be jitted, and
    then its own donation and shardings hold.

    The TPU compiler runs in a process of its own; what it found is kept in the cache (see
    `caching`). It schedules by the memory it has, so ask with the limit you mean. On CPU `limit`
    is only compared with the peak.

    Args:
        device: "cpu", or "tpu v5e:1x1" and the like.
        limit: bytes on one device; the chip's own by default.
        quick: stop at the TPU compiler's estimate, seconds instead of minutes for a train step.
        timeout: seconds for the TPU compiler.

    Raises:
        ValueError: `device` is unknown, or cannot hold the mesh of the arguments.
        TypeError: an argument is int2, which has no exported form.
        ImportError: the extra that compiles for TPU is not installed.
        CompileError: the compiler refused the program, died, or ran out of time.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> w = jax.ShapeDtypeStruct((64, 128), jnp.int4)
        >>> m = memory(lambda w: w.astype(jnp.float32).sum(0), w)
        >>> m.arguments, m.outputs
        (4096, 512)
    """
    chip = _chip(device)
    if limit is not None and limit < _MIB:
        raise ValueError(f"limit is {limit} bytes; expected at least {_MIB} (1 MiB)")
    donate = (donate_argnums,) if isinstance(donate_argnums, int) else tuple(donate_argnums)
    own = isinstance(fn, jax.stages.Wrapped) and not donate
    jitted = fn if own else jax.jit(fn, donate_argnums=donate)
    args = jax.tree.map(_abstract, args)
    if chip is None:
        return _on_cpu(jitted, args, limit)
    budget = _PROBE if quick else limit
    found = compile_for_tpu(
        jitted, args, topology=chip.topology, options=chip.options, limit=budget, timeout=timeout
    )
    installed = versions("jax", "jaxlib", "libtpu")
    limit = limit or chip.hbm
    if "sizes" in found:
        m = Memory(device, **found["sizes"], limit=limit, versions=installed)
        return dataclasses.replace(m, fits=m.peak <= limit or not quick)
    needed = found["needed"] if quick else max(found["needed"], limit + 1)
    return Memory(device, limit=limit, fits=needed <= limit, estimate=needed, versions=installed)


class _Chip(NamedTuple):
    topology: str
    options: dict[str, Any]
    hbm: int


def _chip(device: str) -> _Chip | None:
    """What a TPU device's name means; None for the CPU."""
    if device == "cpu":
        return None
    found = re.fullmatch(r"tpu (\w+):([1-9]\d*(?:x[1-9]\d*){1,2})", device)
    if not found or found[1] not in _CHIPS:
        raise ValueError(f"unknown device {device!r}; expected {_KNOWN}")
    gib, options = _CHIPS[found[1]]
    sides = [int(n) for n in found[2].split("x")]
    bounds = [min(2, sides[0]), min(2, sides[1]), 1]
    options = options | {"chips_per_host_bounds": bounds}
    return _Chip(f"{found[1]}:{found[2]}", options, int(gib * 2**30))


def _abstract(x: Any) -> Any:
    """Shape and dtype of an array, with its sharding where that is part of the program."""
    if isinstance(x, np.ndarray | np.generic) or not hasattr(x, "dtype"):
        return x
    place = getattr(x, "sharding", None)
    on_host = getattr(place, "memory_kind", None) == "pinned_host"
    place = place if on_host or isinstance(place, NamedSharding) else None
    weak = getattr(x, "weak_type", False)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place, weak_type=weak)


def _on_cpu(jitted: jax.stages.Wrapped, args: tuple, limit: int | None) -> Memory:
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        found = sizes(jitted.lower(*args).compile())
    m = Memory("cpu", **found, limit=limit, versions=versions("jax", "jaxlib"))
    return dataclasses.replace(m, fits=limit is None or m.peak <= limit)


def _row(name: str, n: int) -> str:
    return f"  {name:<10}{n:>18,}{n / _MIB:>14,.1f} MiB"
