"""compile_for: a compile for a TPU or GPU that this machine may lack, in a subprocess.

Results are kept in the cache, so each program is compiled once for a target.
"""

import base64
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import pathlib
import re
import subprocess
import sys
import zlib
from typing import Any

import jax
import jax.export

from ..io.atomic import write_whole
from ..io.disk_cache import cache_dir
from ..io.json_fields import read_object
from .devices import Target

_WORKER = pathlib.Path(__file__).with_name("compile_worker.py")
PACKAGES = {"tpu": ["libtpu"], "cuda": ["jax-cuda12-plugin"]}  # each platform's compiler
_ENV = {  # libtpu runs without a TPU, beside other processes that use libtpu, and prints little
    "JAX_PLATFORMS": "cpu",
    "JAX_ENABLE_X64": "1",
    "JAX_TRACEBACK_FILTERING": "off",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "XLA_FLAGS": "--xla_gpu_autotune_level=0",  # without a GPU, kernels cannot be timed
}
# A layout constraint is a custom call, but no kernel that the target might lack.
_LAYOUTS = jax.export.DisabledSafetyCheck.custom_call("LayoutConstraint")


def unpacked(text: str) -> str:
    """A program's text from what the worker's `packed` made of it."""
    return zlib.decompress(base64.b64decode(text)).decode()


class CompileError(RuntimeError):
    """The target's compiler refused the program, died or ran out of time.

    A program that needs too much memory is no error.
    """


def versions(*names: str) -> dict[str, str]:
    """{package: version} of these installed packages.

    Raises:
        ImportError: a package of the extra `tpu` or `gpu` is not installed.
    """
    try:
        return {name: importlib.metadata.version(name) for name in names}
    except importlib.metadata.PackageNotFoundError as e:
        extra = "gpu" if "cuda" in e.name else "tpu"
        problem = f"compiling for {extra.upper()} needs {e.name}"
        raise ImportError(f'{problem}: pip install "jaxmem[{extra}]"') from e


def compile_for(
    target: Target,
    jitted: jax.stages.Wrapped,
    args: tuple,
    *,
    limit: int | None,
    timeout: float,
) -> dict[str, Any]:
    """`{"sizes": {...}}` of the compiled program, or `{"needed": bytes}` if it does not fit.

    The result also has `program`, the packed text before compilation (see `unpacked`), `compiled`,
    the packed text after it if the program fits, and `hash`, which identifies the program, the
    target and the versions. The program is exported in this process and compiled in the subprocess.

    Args:
        target: the devices to compile for.
        jitted: the function; it may be anything that can be traced.
        args: its arguments, concrete or abstract.
        limit: bytes of memory that the TPU compiler may use; None for all of the device's memory.
            The GPU compiler takes no limit.
        timeout: seconds that the compiler may take.

    Raises:
        ValueError: the topology does not exist, or has not as many devices as the arguments' mesh.
        TypeError: an argument's dtype has no exported form (int2).
        ImportError: the extra `tpu` or `gpu` is not installed.
        CompileError: the compiler refused the program, died, or ran out of time.
    """
    installed = versions("jax", "jaxlib", *PACKAGES[target.platform], "flatbuffers")
    options = {"platforms": [target.platform], "disabled_checks": [_LAYOUTS]}
    exported = jax.export.export(jitted, **options)(*args)
    arguments = jax.tree.leaves(jitted.trace(*args).args_info)
    budget = {"xla_tpu_max_hbm_size_mib": str(limit // 2**20)} if limit else {}
    request = {
        "platform": target.platform,
        "topology": target.topology,
        "options": target.options,
        "donated": [i for i, argument in enumerate(arguments) if argument.donated],
        "compiler_options": budget if target.platform == "tpu" else {},
    }
    # The cache key covers all that decides the result. Source locations do not: strip them.
    flags = [os.environ.get(name) for name in ("LIBTPU_INIT_ARGS", "XLA_FLAGS")]
    program = re.sub(r'^#loc.*\n| loc\((#loc\d*|"[^"]*")\)', "", exported.mlir_module(), flags=re.M)
    identity = json.dumps([_WORKER.read_text(), installed, flags, request, program])
    name = hashlib.sha256(identity.encode()).hexdigest()
    path = cache_dir("compiled") / f"{name}.json"
    result = _cached_result(path)
    if result is None:
        result = _result(_run_worker(request, exported, timeout))
        write_whole(path, json.dumps(result).encode())
    return result | {"hash": name}


def _cached_result(path: pathlib.Path) -> dict | None:
    """The result in a file of the cache; None if there is none, or the file is damaged."""
    try:
        result = read_object(path)
    except (ValueError, OSError):
        return None
    return result if "program" in result and ("sizes" in result or "needed" in result) else None


def _result(answer: dict) -> dict:
    """What `compile_for` returns, from the worker's answer; raises if it is an error."""
    if "sizes" in answer:
        return answer
    if "invalid" in answer:
        raise ValueError(f"this program is not for that device: {answer['invalid']}")
    if (needed := needed_bytes(answer["failed"])) is None:
        first, *_ = answer["failed"].strip().splitlines()  # the whole program follows
        raise CompileError(f"the compiler refused: {first}")
    return {"needed": needed, "program": answer["program"]}


def needed_bytes(message: str) -> int | None:
    """Bytes that the program needs, from an out-of-memory message; None for any other message.

    Example:
        >>> needed_bytes("memory required for HLO temporaries (1.50G) exceeds available HBM (1G)")
        1610612736
        >>> needed_bytes("Ran out of memory in memory space hbm. Used 513.00M of 512.00M hbm.")
        537919488
    """
    early = re.search(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM", message)
    late = re.search(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm", message)
    match = early or late
    return match and int(float(match[1]) * 1024 ** " KMGT".index(match[2] or " "))


def _run_worker(request: dict, exported: jax.export.Exported, timeout: float) -> dict:
    """The answer of `compile_worker`, which runs as a subprocess of at most `timeout` seconds."""
    try:
        program = _flat(exported).serialize()
    except KeyError as e:
        raise TypeError(f"arguments of {e} cannot be exported; pack them in uint8") from e
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-W", "ignore", str(_WORKER)],
            input=json.dumps(request).encode() + b"\n" + program,
            capture_output=True,
            check=False,
            env=os.environ | _ENV,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired as e:
        raise CompileError(f"the compiler took more than {timeout} s") from e
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["nothing"]
        # The line of a failed check or a signal tells most; otherwise take the last line.
        cause = next((x for x in lines if re.match(r"F\d{4} |\*\*\* SIG", x)), lines[-1])
        raise CompileError(f"the compiler died (exit status {done.returncode}): {cause}")
    return json.loads(done.stdout.splitlines()[-1])


def _flat(exported: jax.export.Exported) -> jax.export.Exported:
    """The program over flat lists: then the worker needs none of the caller's classes."""
    args, outs = (list(range(len(x))) for x in (exported.in_avals, exported.out_avals))
    trees = jax.tree.structure((tuple(args), {})), jax.tree.structure(outs)
    return dataclasses.replace(exported, in_tree=trees[0], out_tree=trees[1])
