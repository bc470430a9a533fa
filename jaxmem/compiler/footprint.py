"""memory: arguments + outputs + temp - aliased, as the target's own compiler says."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from . import cost_analysis, hlo
from .compile_subprocess import PACKAGES, compile_for, needed_bytes, unpacked, versions
from .compile_worker import sizes
from .devices import Target, target

_MIB = 2**20
_UNTUNED = {"xla_backend_optimization_level": 0}  # buffers are placed before machine code is made
_PROBE = 64 * _MIB  # too little for almost any program: the compiler says at once what is needed


@dataclasses.dataclass(frozen=True)
class Memory:
    """What a compiled program takes: bytes on one device, and `host` bytes apart.

    Where the compiler gave up, it names no parts, only what the program needs: then `exact` is
    False, the parts are None, and `estimate` holds its figure, which is 0.8 to 1.07 of the truth.

    On a TPU `temp` adds up allocations that may share memory, and can alone exceed a limit that the
    program was compiled to keep. There `highest` is the compiler's own peak, and the peak is the
    lower of the two: the other way round, it counts vector memory.

    `flops` are the products' of the whole program, all devices together; `traffic` is what one
    device reads from and writes to its main memory; `collectives` what it receives, by kind. All
    are counted in the program's text, loops as often as they run. `program` is that text before it
    was compiled, where shapes are those of all devices together, and `text` after.

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
    highest: int | None = None
    limit: int | None = None
    fits: bool = True
    estimate: int | None = None
    flops: int | None = None
    traffic: int | None = None
    collectives: dict[str, int] = dataclasses.field(default_factory=dict, hash=False)
    hash: str | None = None
    versions: dict[str, str] = dataclasses.field(default_factory=dict, hash=False)
    program: str | None = dataclasses.field(default=None, repr=False, compare=False)
    text: str | None = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def exact(self) -> bool:
        """Whether this was compiled to the end."""
        return self.estimate is None

    @property
    def peak(self) -> int:
        """Bytes at the fullest moment, or the estimate where the compiler gave up."""
        if self.estimate is not None:
            return self.estimate
        total = self.arguments + self.outputs + self.temp - self.aliased
        return total if self.highest is None else min(total, self.highest)

    @property
    def needed(self) -> int:
        """Bytes of device memory the program asks for: the peak."""
        return self.peak

    @property
    def seconds(self) -> float | None:
        """An estimate of the time of one run: see `devices.Device.seconds`; None on CPU.

        Without a compiled program the traffic is taken to be the peak, read once.
        """
        on = target(self.device)
        if on is None or self.flops is None:
            return None
        moved = self.peak if self.traffic is None else self.traffic
        return on.device.seconds(self.flops / on.count, moved, sum(self.collectives.values()))

    @functools.cached_property
    def notes(self) -> tuple[str, ...]:
        """Where these figures are known to mislead."""
        found = []
        if self.device == "cpu" and self.text and "Space.Host" in self.text:
            found.append("CPU has one memory: what is offloaded to the host counts as device bytes")
        if self.device == "cpu" and self.text and " convolution(" in self.text:
            found.append("what a convolution's own library takes on a CPU is not counted")
        if self.device.startswith("gpu") and self.host is not None:
            found.append("host arguments count as device bytes on a GPU that is not here")
            found.append("the GPU compiler is told no limit: fits compares the peak with it")
        if self.device.startswith("gpu") and self.flops:
            found.append("kernels were not tuned, which may change temp a little")
        return tuple(found)

    def __str__(self) -> str:
        parts = (
            "arguments",
            "outputs",
            "temp",
            "aliased",
            "highest",
            "peak",
            "limit",
            "host",
            "code",
        )
        rows = [(name, getattr(self, name)) for name in (*parts, "traffic")]
        lines = [_row(name, n) for name, n in rows if n is not None]
        lines += [_row(kind, n) for kind, n in self.collectives.items()]
        if self.flops is not None:
            lines.append(f"  {'flops':<20}{self.flops:>18,}{'':18}")
        if self.seconds is not None:
            lines.append(f"  {'seconds, estimated':<20}{self.seconds:>18.6f}{'':18}")
        how = "compiled" if self.exact else "the compiler's estimate"
        versions = ", ".join(f"{k} {v}" for k, v in self.versions.items())
        verdict = "fits" if self.fits else "does not fit"
        notes = [f"  note: {note}" for note in self.notes]
        return "\n".join([f"{self.device}: {verdict} ({how}; {versions})", *lines, *notes])

    def to_json(self) -> str:
        """Every figure, with `peak`, `exact` and `seconds`, as JSON."""
        fields = dataclasses.asdict(self)
        del fields["text"], fields["program"]
        more = {"peak": self.peak, "exact": self.exact, "seconds": self.seconds}
        return json.dumps(fields | more, indent=2)


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

    The compiler runs in a process of its own; what it found is kept in the cache (see
    `caching`). It schedules by the memory it has, so ask with the limit you mean. On CPU and GPU
    `limit` is only compared with the peak.

    Args:
        device: "cpu", "tpu v5e:1x1", "tpu v5e:2x4", "gpu h100" and the like (see `devices`), or
            "here", which is JAX's first device.
        limit: bytes on one device; the chip's own by default.
        quick: stop at the TPU compiler's estimate, seconds instead of minutes for a train step.
        timeout: seconds for the compiler.

    Raises:
        ValueError: `device` is unknown, has less than `limit`, or cannot hold the mesh of the
            arguments.
        TypeError: an argument is int2, which has no exported form.
        ImportError: the extra that compiles for the device is not installed.
        CompileError: the compiler refused the program, died, or ran out of time.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> w = jax.ShapeDtypeStruct((64, 128), jnp.int4)
        >>> m = memory(lambda w: w.astype(jnp.float32).sum(0), w)
        >>> m.arguments, m.outputs
        (4096, 512)
    """
    on = target(device)
    if limit is not None and limit < _MIB:
        raise ValueError(f"limit is {limit} bytes; expected at least {_MIB} (1 MiB)")
    if on and on.platform == "tpu" and (limit or 0) > on.device.memory:
        raise ValueError(f"limit is {limit:,} bytes; {device} has {on.device.memory:,}")
    donate = (donate_argnums,) if isinstance(donate_argnums, int) else tuple(donate_argnums)
    own = isinstance(fn, jax.stages.Wrapped) and not donate
    jitted = fn if own else jax.jit(fn, donate_argnums=donate)
    args = jax.tree.map(_abstract, args)
    if on is None:
        here = jax.local_devices()[0] if device == "here" else jax.local_devices(backend="cpu")[0]
        return _in_process(here, jitted, args, limit)
    quick = quick and on.platform == "tpu"  # a GPU's compiler is quick, and knows no limit
    found = compile_for(on, jitted, args, limit=_PROBE if quick else limit, timeout=timeout)
    return _measured(device, on, found, limit or on.device.memory, quick)


def _measured(device: str, on: Target, found: dict, limit: int, quick: bool) -> Memory:
    installed = versions("jax", "jaxlib", *PACKAGES[on.platform])
    program = unpacked(found["program"])
    known = {
        "program": program,
        "flops": cost_analysis.flops(hlo.read(program)),
        "versions": installed,
    }
    m = Memory(device, limit=limit, hash=found["hash"], **known)
    if "sizes" not in found:
        needed = found["needed"] if quick else max(found["needed"], limit + 1)
        return dataclasses.replace(m, fits=needed <= limit, estimate=needed)
    if on.platform != "tpu":
        found["sizes"]["highest"] = None
    m = dataclasses.replace(m, **found["sizes"], **_moved(unpacked(found["compiled"])))
    return dataclasses.replace(m, fits=m.peak <= limit or not (quick or on.platform == "cuda"))


def _moved(text: str) -> dict:
    program = hlo.read(text)
    collectives = cost_analysis.collective_bytes(program)
    return {"traffic": cost_analysis.hbm_bytes(program), "collectives": collectives, "text": text}


def _abstract(x: Any) -> Any:
    """Shape and dtype of an array, with its sharding where that is part of the program."""
    if isinstance(x, np.ndarray | np.generic) or not hasattr(x, "dtype"):
        return x
    place = getattr(x, "sharding", None)
    on_host = getattr(place, "memory_kind", None) == "pinned_host"
    place = place if on_host or isinstance(place, NamedSharding) else None
    weak = getattr(x, "weak_type", False)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place, weak_type=weak)


def _in_process(place: jax.Device, jitted: jax.stages.Wrapped, args: tuple, limit: int | None):
    """By the compiler of a device that is here."""
    on_cpu = place.platform == "cpu"
    if limit is None and not on_cpu:
        limit = (place.memory_stats() or {}).get("bytes_limit")
    with jax.default_device(place):
        lowered = jitted.lower(*args)
    program, installed = lowered.as_text("hlo"), versions("jax", "jaxlib")
    identity = json.dumps([installed, lowered.as_text()])
    known = {"hash": hashlib.sha256(identity.encode()).hexdigest(), "versions": installed}
    known |= {"program": program, "flops": cost_analysis.flops(hlo.read(program)), "limit": limit}
    name = "cpu" if on_cpu else "here"
    try:
        compiled = lowered.compile(compiler_options=_UNTUNED if on_cpu else None)
    except jax.errors.JaxRuntimeError as error:
        if (needed := needed_bytes(str(error))) is None:
            raise
        return Memory(name, fits=False, estimate=needed, **known)
    known |= sizes(compiled) | _moved(compiled.as_text())
    m = Memory(name, **known | ({} if place.platform == "tpu" else {"highest": None}))
    return dataclasses.replace(m, fits=limit is None or m.peak <= limit)


def _row(name: str, n: int) -> str:
    return f"  {name:<20}{n:>18,}{n / _MIB:>14,.1f} MiB"
