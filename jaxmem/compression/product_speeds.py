"""speeds: seconds a byte of a weight that one row is multiplied by, for each form of weights.

A CPU computes while it reads, so its seconds a byte differ by form, and are measured. A TPU or a
GPU waits for its memory: a byte takes 1 / bandwidth.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
import pathlib
import platform
import random
import statistics
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..codecs import Codebook, Float, Int
from ..compiler.devices import target
from ..compiler.local_devices import local_device
from ..core.arguments import TEXT, takes
from ..core.byte_counts import nbytes
from ..core.lifting import lift
from ..cpu_kernels.library import native
from ..io.atomic import write_whole
from ..io.disk_cache import cache_dir
from .product_forms import ProductForm, closest, form, has_fast_product

DENSE = (jnp.float32, jnp.bfloat16)
CODECS = (
    *(Int(bits, group=64, symmetric=False) for bits in range(2, 9)),
    Int(4, group=128, symmetric=False),
    Int(4, group=64),
    Int(4),
    Int(8),
    Codebook("nf4", group=64),
    Float("e4m3"),
)
K, N = 2048, 8192  # weights are (k, n); n is a multiple of N, so that no cache holds all of them
LEAST_ROUNDS, MOST_ROUNDS, MOST_SECONDS = 5, 25, 3.0
USUAL_CACHE = 2**25  # bytes, where the system does not say


@dataclasses.dataclass(frozen=True)
class Speeds:
    """What `speeds` returns.

    Attributes:
        device: its name.
        seconds_per_byte: of the forms that the device multiplies without writing decoded weights:
            seconds of a product with one row, divided by the bytes of the weight (`jm.nbytes`).
        source: how the numbers are known.
    """

    device: str
    seconds_per_byte: Mapping[ProductForm, float]
    source: str

    def of(self, leaf: Any) -> float | None:
        """Seconds a byte of a leaf, dense or encoded; None if nothing like it is known.

        An integer form that was not measured counts as the one of as many bits whose groups are
        closest in length.

        Example:
            >>> import jax.numpy as jnp, jaxmem as jm
            >>> jm.speeds("tpu v5e:1x1").of(jnp.ones((8, 8))) == 1 / 819e9
            True
        """
        known = form(leaf)
        known = known and closest(known, self.seconds_per_byte)
        return known and self.seconds_per_byte[known]

    def __str__(self) -> str:
        rows = (f"{f}: {1e-9 / s:.1f} GB/s" for f, s in self.seconds_per_byte.items())
        return "\n".join([f"{self.device}, {self.source}", *rows])


@takes(device=TEXT)
def speeds(device: str) -> Speeds:
    """How fast a device multiplies one row, as in decoding, by weights of each form.

    For "cpu" they are measured on this CPU in some seconds: forms take turns, on weights that no
    cache holds together, and the median counts. The result is kept in the cache (`JAXMEM_CACHE`,
    else `~/.cache/jaxmem`) for this CPU, number of threads, jax version and compiled library, so
    let the machine be quiet at the first call. For other devices the numbers are arithmetic:
    1 / bandwidth by the table of devices, for one of them if the name stands for several.

    Args:
        device: "cpu", "here", or a name as of `jm.memory`: "tpu v5e:1x1", "gpu h100".

    Raises:
        ValueError: `device` is no known name.

    Example:
        >>> import jaxmem as jm
        >>> h100 = jm.speeds("gpu h100")
        >>> print(h100.source)
        3350 GB/s by the table of devices
        >>> [str(form) for form in h100.seconds_per_byte]  # no groups: a GPU would decode them
        ['float32', 'bfloat16', 'int4', 'int8', 'e4m3']
    """
    if device == "here":
        device = local_device()
    found = target(device)
    if found is None:
        return _of_cpu(_cpu_key())
    seconds = 1 / found.device.bandwidth
    kind = "tpu" if found.platform == "tpu" else "gpu"
    fast = {form(w): seconds for w in _abstract_weights(N) if has_fast_product(w, kind)}
    return Speeds(device, fast, f"{found.device.bandwidth / 1e9:.0f} GB/s by the table of devices")


def _abstract_weights(n: int) -> list:
    """The shapes of the weights that are measured: dense ones, then one of each codec."""
    shape = lambda dtype: jax.ShapeDtypeStruct((K, n), dtype)
    encoded = [jax.eval_shape(codec.encode, shape(jnp.float32)) for codec in CODECS]
    return [*map(shape, DENSE), *encoded]


def _cpu_key() -> tuple[str, ...]:
    """What the speeds of a CPU depend on: its model, threads, jax and the compiled library."""
    info, library = pathlib.Path("/proc/cpuinfo"), native()
    names = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in names if line.startswith("model name"))
    model = next(names, platform.processor() or platform.machine())
    affinity = getattr(os, "sched_getaffinity", None)  # Linux
    threads = len(affinity(0)) if affinity else os.cpu_count() or 1
    compiled = f"compiled products {pathlib.Path(library.reason).stem[:8]}"
    compiled += f" ({library.instruction_set})"
    products = "no compiled products" if library.instruction_set is None else compiled
    return model, f"{threads} threads", f"jax {jax.__version__}", products


@functools.cache
def _of_cpu(key: tuple[str, ...]) -> Speeds:
    """The speeds from the cache, or measured and put there."""
    digest = hashlib.sha256(repr((key, DENSE, CODECS, K, N)).encode()).hexdigest()[:32]
    path = None
    with contextlib.suppress(OSError):  # without a cache each process measures
        path = cache_dir("speeds") / f"{digest}.json"
    if kept := path and _read(path):
        return kept
    rows = _measured()
    source = f"measured on {', '.join(key)}, load average {os.getloadavg()[0]:.1f}"
    data = {"source": source, "seconds_per_byte": [[*f, s] for f, s in rows.items()]}
    with contextlib.suppress(OSError):
        path and write_whole(path, json.dumps(data, indent=1).encode())
    return Speeds("cpu", rows, source)


def _read(path: pathlib.Path) -> Speeds | None:
    """The speeds in a file of the cache; None if it is missing or damaged."""
    try:
        data = json.loads(path.read_text())
        rows = {
            ProductForm(*fields): float(seconds) for *fields, seconds in data["seconds_per_byte"]
        }
        kept = Speeds("cpu", rows, data["source"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
    is_whole = set(rows) == {form(w) for w in _abstract_weights(N)}
    return kept if is_whole and min(rows.values()) > 0 else None


def _measured() -> dict[ProductForm, float]:
    """{form: the median of seconds of a product with one row, divided by the weight's bytes}."""
    total = nbytes(_abstract_weights(N))
    n = N * max(1, math.ceil(2 * _cache_bytes() / total))
    run, generator = jax.jit(lift(jnp.matmul)), np.random.default_rng(0)
    with jax.default_device(jax.devices("cpu")[0]):
        # Speed does not depend on the numbers, so no weight is encoded.
        weights = [
            jax.tree.map(functools.partial(_drawn, generator), w) for w in _abstract_weights(n)
        ]
        x = {dtype: jnp.ones((1, K), dtype) for dtype in DENSE}
        inputs = [x[jnp.bfloat16 if w.dtype == jnp.bfloat16 else jnp.float32] for w in weights]
        pairs = list(zip(inputs, weights))
        for pair in pairs:
            jax.block_until_ready(run(*pair))  # compiles
        times, order = [[] for _ in pairs], list(range(len(pairs)))
        shuffle, start = random.Random(0).shuffle, time.perf_counter()
        while len(times[0]) < MOST_ROUNDS and (
            len(times[0]) < LEAST_ROUNDS or time.perf_counter() - start < MOST_SECONDS
        ):
            shuffle(order)
            for i in order:
                before = time.perf_counter()
                jax.block_until_ready(run(*pairs[i]))
                times[i].append(time.perf_counter() - before)
    return {form(w): statistics.median(t) / nbytes(w) for w, t in zip(weights, times)}


def _drawn(generator: np.random.Generator, shape: jax.ShapeDtypeStruct) -> jax.Array:
    """An array of numbers that any form can hold."""
    if jnp.issubdtype(shape.dtype, jnp.integer):
        codes = generator.integers(0, 120, shape.shape, np.uint8)  # no NaN of 8 bits
        return jnp.asarray(codes.view(shape.dtype))
    return jnp.asarray(generator.random(shape.shape, np.float32)).astype(shape.dtype)


def _cache_bytes() -> int:
    """Bytes of the largest cache of a core."""
    files = pathlib.Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    sizes = [file.read_text().strip().removesuffix("K") for file in files]
    return max((1024 * int(size) for size in sizes if size.isdigit()), default=USUAL_CACHE)
