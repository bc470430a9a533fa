"""allocations: how many buffers a call on the CPU really takes, counted before the C library."""

import dataclasses
import hashlib
import json
import os
import pathlib
import platform
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.export
import numpy as np

from ..core.arguments import ARGNUMS, BYTES, POSITIVE, takes
from ..cpu_kernels.library import kept_in_exports
from ..io.atomic import replacing
from ..io.disk_cache import cache_dir

_HERE = pathlib.Path(__file__).parent
_SOURCE, _WORKER = _HERE / "allocation_counter.c", _HERE / "allocation_worker.py"
_COMPILERS = ("cc", "gcc", "clang")
_OPTIONS = ("-std=gnu11", "-O2", "-w", "-fPIC", "-shared")
_COMPILE_SECONDS = 120


@dataclasses.dataclass(frozen=True)
class Allocations:
    """What one call of a compiled program allocates on a CPU: medians of some calls.

    - buffers: allocations of at least `least` bytes; nbytes: their bytes.
    - every: allocations of any size. Python and the runtime make hundreds of small ones in each
      call, so that no call takes none.
    - in_place: {donated argument: whether a result had its address, in each call}: then it was
      updated where it was.
    - jax: the version. 0.10 allocates temporaries for each layer of a loop, 0.12 once for a call.
    """

    buffers: float
    nbytes: float
    every: float
    least: int
    calls: int
    in_place: dict[str, bool]
    jax: str

    def __str__(self) -> str:
        lines = [
            f"{self.buffers:>14,.6g}  buffers of at least {self.least:,} bytes a call",
            f"{self.nbytes:>14,.6g}  bytes of these",
            f"{self.every:>14,.6g}  allocations of any size, Python's and the runtime's among them",
        ]
        said = {True: "updated in place", False: "donated, but not updated in place"}
        lines += [f"{'':16}{name}: {said[flag]}" for name, flag in self.in_place.items()]
        return "\n".join([*lines, f"{'':16}the median of {self.calls} calls, jax {self.jax}"])


@takes(donate_argnums=ARGNUMS, least=BYTES, calls=POSITIVE)
def allocations(
    fn: Callable,
    *args: Any,
    donate_argnums: int | Sequence[int] = (),
    least: int = 16 * 1024,
    calls: int = 8,
    timeout: float = 600.0,
) -> Allocations:
    """How many buffers a call of `fn(*args)` takes on the CPU, and which arguments stay in place.

    The program is exported and runs in a process of its own, in which a small C library counts
    calls of malloc and its kin; the compiler of this machine makes it once. Nothing is estimated:
    compare `jm.memory`, which says what the compiler planned. What a call of several steps takes is
    divided by their number by you.

    Args:
        fn: the function; if it is jitted, its own donation holds.
        args: its arguments, as arrays. Each call takes copies of those that are donated.
        donate_argnums: positions of arguments whose memory the results may take.
        least: bytes from which an allocation counts as a buffer.
        calls: how many calls are counted, after some that are not.
        timeout: seconds that the process may take.

    Raises:
        ValueError: `timeout` is not above 0.
        NotImplementedError: this is no Linux with glibc.
        OSError: there is no C compiler, or the cache cannot be written.
        RuntimeError: the process died or took too long; or the C library did not count.
        TypeError: an argument has no exported form.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> add = lambda state, x: state.at[0].add(x)  # 256 KiB of state
        >>> state, x = jnp.zeros((64, 1024)), jnp.ones(1024)
        >>> donated = jm.allocations(add, state, x, donate_argnums=0)
        >>> donated.buffers < 1, donated.in_place, donated.every >= 1
        (True, {'args[0]': True}, True)
    """
    if not 0 < timeout < float("inf"):
        raise ValueError(f"timeout is {timeout}, expected seconds above 0")
    counter = counter_library()
    donate = (donate_argnums,) if isinstance(donate_argnums, int) else tuple(donate_argnums)
    is_jitted = isinstance(fn, jax.stages.Wrapped) and not donate
    jitted = fn if is_jitted else jax.jit(fn, donate_argnums=donate)
    infos = jax.tree_util.tree_leaves_with_path(jitted.trace(*args).args_info)
    names = ["args" + jax.tree_util.keystr(path[1:]) for path, _ in infos]
    donated = [i for i, (_, info) in enumerate(infos) if info.donated]
    leaves, tree = jax.tree.flatten(args)
    flat = jax.jit(lambda *leaves: jax.tree.leaves(jitted(*tree.unflatten(leaves))))
    arrays = [np.asarray(x) for x in jax.tree.map(jax.numpy.asarray, leaves)]
    kernels = sorted(set(re.findall(r"@(jaxmem_\w+)", flat.lower(*leaves).as_text())))
    checks = [jax.export.DisabledSafetyCheck.custom_call(name) for name in kernels]
    try:
        with kept_in_exports():
            exported = jax.export.export(flat, platforms=["cpu"], disabled_checks=checks)(*leaves)
        program = bytes(exported.serialize())
    except KeyError as error:
        raise TypeError(f"allocations: an argument of {error} has no exported form") from error
    request = {
        "arrays": [(x.dtype.name, x.shape) for x in arrays],
        "donated": donated,
        "calls": calls,
        "least": int(least),
        "program": len(program),
        "kernels": bool(kernels),
    }
    parts = [json.dumps(request).encode() + b"\n", program]
    parts += [np.ascontiguousarray(x).tobytes() for x in arrays]
    answer = _run(counter, b"".join(parts), timeout)
    every, buffers, nbytes = map(statistics.median, zip(*answer["counts"]))
    if not every:
        raise RuntimeError("allocations: the preloaded C library counted nothing")
    in_place = {names[i]: flag for i, flag in zip(donated, answer["in_place"])}
    return Allocations(buffers, nbytes, every, int(least), calls, in_place, jax.__version__)


def counter_library() -> pathlib.Path:
    """The library that counts; it is compiled if it is not in the cache.

    Raises:
        NotImplementedError: this is no Linux with glibc.
        OSError: there is no C compiler, or it failed, or the cache cannot be written.
    """
    if platform.libc_ver()[0] != "glibc":
        raise NotImplementedError(
            f"allocations are counted on Linux with glibc, not on {sys.platform}"
        )
    compiler = os.environ.get("CC") or next(filter(shutil.which, _COMPILERS), None)
    if compiler is None:
        raise OSError(f"there is no C compiler: none of {', '.join(_COMPILERS)} is on the path")
    command = [*compiler.split(), *_OPTIONS, str(_SOURCE), "-o"]
    identity = json.dumps([command, platform.machine(), _SOURCE.read_text()])
    path = cache_dir("native") / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.so"
    if not path.exists():
        with replacing(path) as temporary:
            options = dict(capture_output=True, text=True, timeout=_COMPILE_SECONDS)
            done = subprocess.run([*command, str(temporary)], check=False, **options)
            if done.returncode:
                raise OSError(f"{compiler} failed: {(done.stderr.splitlines() or ['nothing'])[0]}")
    return path


def _run(counter: pathlib.Path, stdin: bytes, timeout: float) -> dict:
    """The answer of `allocation_worker` to what it reads."""
    x64 = str(int(jax.config.jax_enable_x64))
    env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": x64, "LD_PRELOAD": str(counter)}
    command = [sys.executable, "-P", "-W", "ignore", str(_WORKER)]
    options = dict(capture_output=True, env=env, timeout=timeout)
    try:
        done = subprocess.run(command, input=stdin, check=False, **options)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"allocations: the process took more than {timeout} s") from error
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["nothing"]
        raise RuntimeError(f"allocations: the process died ({done.returncode}): {lines[-1]}")
    return json.loads(done.stdout.splitlines()[-1])
