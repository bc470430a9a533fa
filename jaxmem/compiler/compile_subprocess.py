"""Compiles for a TPU or GPU that is not here: in a process of its own, once for each program."""

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
from .devices import Target

_WORKER = pathlib.Path(__file__).with_name("compile_worker.py")
PACKAGES = {"tpu": ["libtpu"], "cuda": ["jax-cuda12-plugin"]}  # each platform's compiler
_ENV = {  # libtpu on a machine without TPU, beside other processes that use it, and quiet
    "JAX_PLATFORMS": "cpu",
    "JAX_ENABLE_X64": "1",
    "JAX_TRACEBACK_FILTERING": "off",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "XLA_FLAGS": "--xla_gpu_autotune_level=0",  # kernels cannot be timed where there is no GPU
}
_LAYOUTS = jax.export.DisabledSafetyCheck.custom_call("LayoutConstraint")  # no kernel of anyone's


def unpacked(text: str) -> str:
    """A program's text, as the worker packed it."""
    return zlib.decompress(base64.b64decode(text)).decode()


class CompileError(RuntimeError):
    """The target's compiler refused the program, died or ran out of time; not out of memory."""


def versions(*names: str) -> dict[str, str]:
    """The installed versions of packages.

    Raises:
        ImportError: one is missing that the extra `tpu` or `gpu` brings.
    """
    try:
        return {name: importlib.metadata.version(name) for name in names}
    except importlib.metadata.PackageNotFoundError as e:
        extra = "gpu" if "cuda" in e.name else "tpu"
        what = f"compiling for {extra.upper()} needs {e.name}"
        raise ImportError(f'{what}: pip install "jaxmem[{extra}]"') from e


def compile_for(
    target: Target,
    jitted: jax.stages.Wrapped,
    args: tuple,
    *,
    limit: int | None,
    timeout: float,
) -> dict[str, Any]:
    """`{"sizes": {...}}` of the compiled program, or `{"needed": bytes}` where it does not fit.

    Beside them are the packed texts: `program`, and `compiled` where it was (see `unpacked`), and
    `hash`, which names the program, the target and the versions. The program is exported here and
    compiled there, so `jitted` may be anything that traces.

    Args:
        limit: the bytes the compiler believes it has; None for what the chip has. GPUs take none.
        timeout: seconds.

    Raises:
        ValueError: the topology is not one, or not one for the mesh of the arguments.
        TypeError: an argument's dtype has no exported form (int2).
        ImportError: the extra `tpu` or `gpu` is not installed.
        CompileError: the compiler refused the program, died, or ran out of time.
    """
    installed = versions("jax", "jaxlib", *PACKAGES[target.platform], "flatbuffers")
    how = {"platforms": [target.platform], "disabled_checks": [_LAYOUTS]}
    exported = jax.export.export(jitted, **how)(*args)
    arguments = jax.tree.leaves(jitted.trace(*args).args_info)
    budget = {"xla_tpu_max_hbm_size_mib": str(limit // 2**20)} if limit else {}
    request = {
        "platform": target.platform,
        "topology": target.topology,
        "options": target.options,
        "donated": [i for i, argument in enumerate(arguments) if argument.donated],
        "compiler_options": budget if target.platform == "tpu" else {},
    }
    flags = [os.environ.get(name) for name in ("LIBTPU_INIT_ARGS", "XLA_FLAGS")]
    program = re.sub(r'^#loc.*\n| loc\((#loc\d*|"[^"]*")\)', "", exported.mlir_module(), flags=re.M)
    identity = json.dumps([_WORKER.read_text(), installed, flags, request, program])
    name = hashlib.sha256(identity.encode()).hexdigest()
    path = cache_dir("compiled") / f"{name}.json"
    if not path.exists():
        found = _result(_ask(request, exported, timeout))
        write_whole(path, json.dumps(found).encode())
    return json.loads(path.read_text()) | {"hash": name}


def _result(answer: dict) -> dict:
    if "sizes" in answer:
        return answer
    if "invalid" in answer:
        raise ValueError(f"this program is not for that device: {answer['invalid']}")
    if (needed := needed_bytes(answer["failed"])) is None:
        first = (
            answer["failed"].strip().splitlines()[0]
        )  # then come the whole program and its lines
        raise CompileError(f"the compiler refused: {first}")
    return {"needed": needed, "program": answer["program"]}


def needed_bytes(message: str) -> int | None:
    """Bytes the compiler's out-of-memory message asks for; None for any other message.

    Example:
        >>> needed_bytes("memory required for HLO temporaries (1.50G) exceeds available HBM (1G)")
        1610612736
        >>> needed_bytes("Ran out of memory in memory space hbm. Used 513.00M of 512.00M hbm.")
        537919488
    """
    early = re.search(r"\(([\d.]+)([KMGT]?)\) exceeds available HBM", message)
    late = re.search(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm", message)
    found = early or late
    return found and int(float(found[1]) * 1024 ** " KMGT".index(found[2] or " "))


def _ask(request: dict, exported: jax.export.Exported, timeout: float) -> dict:
    """What the worker says, in a process of its own."""
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
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["nothing"]
        why = next((x for x in said if re.match(r"F\d{4} |\*\*\* SIG", x)), said[-1])
        raise CompileError(f"the compiler died (exit status {done.returncode}): {why}")
    return json.loads(done.stdout.splitlines()[-1])


def _flat(exported: jax.export.Exported) -> jax.export.Exported:
    """The same program over flat lists: the worker need not know the caller's classes."""
    args, outs = (list(range(len(x))) for x in (exported.in_avals, exported.out_avals))
    trees = jax.tree.structure((tuple(args), {})), jax.tree.structure(outs)
    return dataclasses.replace(exported, in_tree=trees[0], out_tree=trees[1])
