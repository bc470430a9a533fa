"""memory: arguments + outputs + temp - aliased, as the target's own compiler reports them."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from ..core.arguments import ARGNUMS, AT_LEAST_0, OPTIONAL_BYTES, takes
from ..core.pictures import Picture, bars, html_table
from . import cost_analysis, hlo
from .compile_subprocess import PACKAGES, compile_for, needed_bytes, unpacked, versions
from .compile_worker import sizes
from .devices import Target, target

_MIB = 2**20
_UNTUNED = {"xla_backend_optimization_level": 0}  # buffers are assigned before these optimizations
_PROBE_LIMIT = 64 * _MIB  # too little for almost any program: the compiler soon reports the need


@dataclasses.dataclass(frozen=True)
class Memory:
    """What a compiled program takes: bytes of one device's memory, and of `host` memory.

    If the compiler gave up, it reports no parts, only how much the program needs. Then `exact` is
    False, the parts are None, and `estimate` has the reported bytes, 0.8 to 1.07 of the true peak.

    On a TPU, `temp` sums allocations that may share memory, so `temp` alone can exceed a limit that
    the program keeps; `highest`, the compiler's own peak, may count vector memory. So the peak is
    the lower of `highest` and the sum of the parts.

    `flops` counts the products of all devices together. `traffic` is the bytes that one device
    reads from and writes to its main memory. `collectives` is {kind: bytes that one device
    receives}. All three are counted in the program's text, and a loop counts each time it runs.
    `program` is the text before compilation, with shapes of all devices together; `text` is the
    text after compilation.

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
        """Whether the program was compiled to the end, so that the parts are known."""
        return self.estimate is None

    @property
    def peak(self) -> int:
        """Bytes at the moment of most use, or the estimate if the compiler gave up."""
        if self.estimate is not None:
            return self.estimate
        total = self.arguments + self.outputs + self.temp - self.aliased
        return total if self.highest is None else min(total, self.highest)

    @property
    def needed(self) -> int:
        """Bytes of device memory that the program needs: the peak."""
        return self.peak

    @property
    def seconds(self) -> float | None:
        """Estimated seconds of one run (see `devices.Device.seconds`); None on CPU.

        If the program was not compiled, the traffic is taken to be the peak, read once.
        """
        to = target(self.device)
        if to is None or self.flops is None:
            return None
        traffic = self.peak if self.traffic is None else self.traffic
        return to.device.seconds(self.flops / to.count, traffic, sum(self.collectives.values()))

    def _parts(self) -> dict[str, int]:
        """Bytes by part, which add up to the peak where they are known."""
        if not self.exact:
            return {"estimated": self.peak}
        outputs = self.outputs - self.aliased
        parts = {"arguments": self.arguments, "outputs": outputs}
        return parts | {"temporaries": self.peak - self.arguments - outputs}

    def _repr_html_(self) -> str:
        parts = self._parts() | ({} if self.limit is None else {"limit": self.limit})
        rows = [(name, f"{n:,}") for name, n in parts.items()]
        return html_table(("part", "bytes"), [*rows, ("peak", f"{self.peak:,}")], self.device)

    def plot(self) -> Picture:
        """A picture of the bytes by part, beside the limit.

        Raises:
            ImportError: matplotlib is missing.
        """
        names = ["program"] if self.limit is None else ["program", "limit"]
        row = lambda n: [n / 2**20, 0.0][: len(names)]
        stacks = {name: row(n) for name, n in self._parts().items()}
        stacks |= {} if self.limit is None else {"limit": [0.0, self.limit / 2**20]}
        title = f"{self.device}: {'fits' if self.fits else 'does not fit'}"
        return bars(names, stacks, title=title, label="MiB on one device")

    @functools.cached_property
    def notes(self) -> tuple[str, ...]:
        """Sentences on which of these figures are known to mislead, and why."""
        notes = []
        if self.device == "cpu" and self.text and "Space.Host" in self.text:
            notes.append("CPU has one memory: what is offloaded to the host counts as device bytes")
        if self.device == "cpu" and self.text and " convolution(" in self.text:
            notes.append("what a convolution's own library takes on a CPU is not counted")
        if self.device.startswith("gpu") and self.host is not None:
            notes.append("host arguments count as device bytes on a GPU that is not here")
            notes.append("the GPU compiler is told no limit: fits compares the peak with it")
        if self.device.startswith("gpu") and self.flops:
            notes.append("kernels were not tuned, which may change temp a little")
        return tuple(notes)

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
        source = "compiled" if self.exact else "the compiler's estimate"
        versions = ", ".join(f"{k} {v}" for k, v in self.versions.items())
        verdict = "fits" if self.fits else "does not fit"
        notes = [f"  note: {note}" for note in self.notes]
        return "\n".join([f"{self.device}: {verdict} ({source}; {versions})", *lines, *notes])

    def to_json(self) -> str:
        """Every figure, with `peak`, `exact` and `seconds`, as JSON."""
        fields = dataclasses.asdict(self)
        del fields["text"], fields["program"]
        more = {"peak": self.peak, "exact": self.exact, "seconds": self.seconds}
        return json.dumps(fields | more, indent=2)


@takes(donate_argnums=ARGNUMS, limit=OPTIONAL_BYTES, timeout=AT_LEAST_0)
def memory(
    fn: Callable,
    *args: Any,
    device: str = "cpu",
    donate_argnums: int | Sequence[int] = (),
    limit: int | None = None,
    quick: bool = False,
    timeout: float = 1800.0,
) -> Memory:
    """Bytes that `fn(*args)` takes on `device`, from a real compile; no TPU or GPU is needed.

    Nothing is run. For several devices, shard the arguments over a mesh of as many devices, which
    may be an `AbstractMesh`; figures are for one device.

    For a TPU or GPU the compiler runs in a subprocess, and its result is kept in the cache (see
    `io.disk_cache`). The TPU compiler schedules for the memory it is given, so pass the limit that
    you will have. On CPU and GPU `limit` is only compared with the peak.

    Args:
        fn: the function; if it is jitted, its own donation and shardings hold.
        args: its arguments, concrete or abstract.
        device: "cpu", "tpu v5e:1x1", "tpu v5e:2x4", "gpu h100" and the like (see
            `compiler.devices`), or "here", which is JAX's first device.
        donate_argnums: positions of arguments whose memory the results may take.
        limit: bytes on one device; None for all of the device's memory.
        quick: stop at the TPU compiler's estimate, seconds instead of minutes for a train step.
        timeout: seconds that the compiler may take.

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
    to = target(device)
    if limit is not None and limit < _MIB:
        raise ValueError(f"limit is {limit} bytes; expected at least {_MIB} (1 MiB)")
    if to and to.platform == "tpu" and (limit or 0) > to.device.memory:
        raise ValueError(f"limit is {limit:,} bytes; {device} has {to.device.memory:,}")
    donate = (donate_argnums,) if isinstance(donate_argnums, int) else tuple(donate_argnums)
    is_jitted = isinstance(fn, jax.stages.Wrapped) and not donate
    jitted = fn if is_jitted else jax.jit(fn, donate_argnums=donate)
    args = jax.tree.map(_abstract, args)
    if to is None:
        local = jax.local_devices() if device == "here" else jax.local_devices(backend="cpu")
        return _in_process(local[0], jitted, args, limit)
    quick = quick and to.platform == "tpu"  # the GPU compiler is quick, and takes no limit
    result = compile_for(to, jitted, args, limit=_PROBE_LIMIT if quick else limit, timeout=timeout)
    return _from_result(device, to, result, limit or to.device.memory, quick)


def _from_result(device: str, to: Target, result: dict, limit: int, quick: bool) -> Memory:
    """A `Memory` from what `compile_for` returned."""
    installed = versions("jax", "jaxlib", *PACKAGES[to.platform])
    program = unpacked(result["program"])
    fields = {
        "program": program,
        "flops": cost_analysis.flops(hlo.read(program)),
        "versions": installed,
    }
    m = Memory(device, limit=limit, hash=result["hash"], **fields)
    if "sizes" not in result:
        needed = result["needed"] if quick else max(result["needed"], limit + 1)
        return dataclasses.replace(m, fits=needed <= limit, estimate=needed)
    if to.platform != "tpu":
        result["sizes"]["highest"] = None
    m = dataclasses.replace(m, **result["sizes"], **_traffic(unpacked(result["compiled"])))
    # A TPU program that was compiled under the limit fits, whatever its parts add up to.
    return dataclasses.replace(m, fits=m.peak <= limit or not (quick or to.platform == "cuda"))


def _traffic(text: str) -> dict:
    """The fields of `Memory` that are counted in the compiled program's text."""
    program = hlo.read(text)
    collectives = cost_analysis.collective_bytes(program)
    return {"traffic": cost_analysis.hbm_bytes(program), "collectives": collectives, "text": text}


def _abstract(x: Any) -> Any:
    """Shape and dtype of an array, with its sharding if the sharding is part of the program."""
    if isinstance(x, np.ndarray | np.generic) or not hasattr(x, "dtype"):
        return x
    place = getattr(x, "sharding", None)
    on_host = getattr(place, "memory_kind", None) == "pinned_host"
    place = place if on_host or isinstance(place, NamedSharding) else None
    weak = getattr(x, "weak_type", False)
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place, weak_type=weak)


def _in_process(place: jax.Device, jitted: jax.stages.Wrapped, args: tuple, limit: int | None):
    """A `Memory` by the compiler of `place`, a device of this process."""
    on_cpu = place.platform == "cpu"
    if limit is None and not on_cpu:
        limit = (place.memory_stats() or {}).get("bytes_limit")
    with jax.default_device(place):
        lowered = jitted.lower(*args)
    program, installed = lowered.as_text("hlo"), versions("jax", "jaxlib")
    identity = json.dumps([installed, lowered.as_text()])
    fields = {"hash": hashlib.sha256(identity.encode()).hexdigest(), "versions": installed}
    fields |= {"program": program, "flops": cost_analysis.flops(hlo.read(program)), "limit": limit}
    name = "cpu" if on_cpu else "here"
    try:
        compiled = lowered.compile(compiler_options=_UNTUNED if on_cpu else None)
    except jax.errors.JaxRuntimeError as error:
        if (needed := needed_bytes(str(error))) is None:
            raise
        return Memory(name, fits=False, estimate=needed, **fields)
    fields |= sizes(compiled) | _traffic(compiled.as_text())
    m = Memory(name, **fields | ({} if place.platform == "tpu" else {"highest": None}))
    return dataclasses.replace(m, fits=limit is None or m.peak <= limit)


def _row(name: str, n: int) -> str:
    """A line of the table: a name, bytes, and MiB."""
    return f"  {name:<20}{n:>18,}{n / _MIB:>14,.1f} MiB"
