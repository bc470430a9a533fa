"""native: which products a compiled library computes on this CPU, and the library itself.

The library is compiled once, for the processor of this machine and with its own compiler, into the
user's cache. Its name there is a hash of the sources, of the compiler's version and options, of the
processor's instruction set and of jax's interface for such libraries.
"""

import contextlib
import ctypes
import dataclasses
import fcntl
import functools
import hashlib
import os
import pathlib
import platform
import shutil
import subprocess

import jax

from ..io.atomic import replacing
from ..io.disk_cache import cache_dir
from ..kernels.dispatch import exported_for_this_machine

SOURCES = pathlib.Path(__file__).parent
COMPILERS = ("c++", "g++", "clang++")
# What XLA calls.
FUNCTIONS = (
    "jaxmem_attended_pages",
    "jaxmem_attended_row",
    "jaxmem_block_rows",
    "jaxmem_integer_rows",
    "jaxmem_scaled_rows",
)
OPTIONS = ("-std=c++17", "-O2", "-w", "-fPIC", "-shared", "-fno-math-errno")
COMPILE_SECONDS = 900  # it takes about 30 of a processor, which a busy machine may share among many
# Instruction sets that JAXMEM_NATIVE may name, of an x86 processor, and the compiler's options.
CHOSEN = {"avx2": ("-mavx2", "-mfma", "-mf16c", "-mbmi2"), "baseline": ()}


@dataclasses.dataclass(frozen=True)
class Native:
    """What `native` returns.

    Attributes:
        instruction_set: the vector instructions that the library uses: "avx512-vnni", "avx-vnni",
            "avx2", "neon-dot"; "baseline" if it uses none by name; None if there is no library.
        functions: names of the compiled functions.
        reason: why there is no library, or where it is.
    """

    instruction_set: str | None
    functions: tuple[str, ...]
    reason: str


def native() -> Native:
    """Whether products with encoded weights run compiled C++ code on this CPU, and if not, why.

    The first call, or the first such product, compiles the code, which takes some seconds. Then it
    comes from the cache (`JAXMEM_CACHE`, else `~/.cache/jaxmem`). Without a C++ compiler, and with
    `JAXMEM_NATIVE=0` in the environment, the same products run in JAX. The code is for all that
    this CPU has, such as AVX-512; `JAXMEM_NATIVE=avx2` or `=baseline` asks for less. The variable
    CXX names another compiler than `c++`.

    Raises:
        ValueError: JAXMEM_NATIVE is set to something else.

    Example:
        >>> import jaxmem as jm
        >>> library = jm.native()
        >>> (library.instruction_set is None) == (library.functions == ())
        True
        >>> len(library.reason) > 0  # the path of the library, or why there is none
        True
    """
    library, reason = _library()
    if library is None:
        return Native(None, (), reason)
    library.jaxmem_instruction_set.restype = ctypes.c_char_p
    return Native(library.jaxmem_instruction_set().decode(), FUNCTIONS, reason)


def is_native() -> bool:
    """Whether the library's functions are known to XLA as `ffi_call` names them."""
    return _library()[0] is not None


def kept_in_exports() -> contextlib.AbstractContextManager:
    """A context in which `jax.export` keeps calls of the library; else it takes the XLA products.

    Such a program runs only where `is_native()` was called.
    """
    return exported_for_this_machine()


@functools.cache
def _library() -> tuple[ctypes.CDLL | None, str]:
    """(the library, whose functions XLA knows then, its path), or (None, why there is none)."""
    if os.environ.get("JAXMEM_NATIVE") == "0":
        return None, "JAXMEM_NATIVE=0 is in the environment"
    try:
        path = _compiled()
        library = ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError) as error:
        return None, _first_line(error)
    if wrong := _wrong_product(library, path.with_suffix(".right")):
        return None, f"the library at {path} computes a wrong product: {wrong}"
    for name in FUNCTIONS:
        capsule = jax.ffi.pycapsule(getattr(library, name))
        jax.ffi.register_ffi_target(name, capsule, platform="cpu")
    return library, str(path)


def _wrong_product(library: ctypes.CDLL, mark: pathlib.Path) -> str:
    """The first product that is wrong on this machine, or "". The file `mark` says that none is."""
    if mark.exists():
        return ""
    library.jaxmem_self_test.restype = ctypes.c_char_p
    wrong = library.jaxmem_self_test().decode()
    if not wrong:
        with contextlib.suppress(OSError):  # a cache that cannot be written: the test runs again
            mark.touch()
    return wrong


def _compiled() -> pathlib.Path:
    """The library's path; it is compiled if it is not in the cache.

    Raises:
        OSError: there is no compiler, or the cache cannot be written.
        subprocess.SubprocessError: the compiler failed, or took too long.
    """
    compiler = os.environ.get("CXX") or next(filter(shutil.which, COMPILERS), None)
    if compiler is None:
        raise OSError(f"there is no C++ compiler: none of {', '.join(COMPILERS)} is on the path")
    command = [*compiler.split(), *OPTIONS, *_instructions()]
    path = cache_dir("native") / f"{_digest(command)}.so"
    if path.exists():
        return path
    with open(path.with_suffix(".lock"), "w") as lock:  # one process compiles, others wait
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            with replacing(path) as temporary:
                headers = ["-I", str(SOURCES), "-isystem", jax.ffi.include_dir()]
                _run([*command, *headers, str(SOURCES / "library.cc"), "-o", str(temporary)])
    return path


def _instructions() -> tuple[str, ...]:
    """The compiler's options for the instruction set: this processor's own, or the chosen one."""
    chosen = os.environ.get("JAXMEM_NATIVE") or "1"
    if chosen in CHOSEN:
        return CHOSEN[chosen]
    if chosen != "1":
        raise ValueError(f"JAXMEM_NATIVE is 0, 1, {' or '.join(CHOSEN)}, got {chosen!r}")
    arm = platform.machine() in ("arm64", "aarch64")
    return ("-mcpu=native" if arm else "-march=native",)


def _digest(command: list[str]) -> str:
    """A hash of all that the library depends on."""
    # The macros hold the compiler's version and the processor's instruction set.
    macros = _run([*command, "-dM", "-E", "-x", "c++", os.devnull])
    digest = hashlib.sha256("\0".join([*command, macros]).encode())
    interface = pathlib.Path(jax.ffi.include_dir(), "xla", "ffi", "api")
    for path in sorted([*SOURCES.glob("*.h"), *SOURCES.glob("*.cc"), *interface.glob("*.h")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:32]


def _run(command: list[str]) -> str:
    """What a command prints."""
    options = dict(capture_output=True, text=True, timeout=COMPILE_SECONDS)
    return subprocess.run(command, check=True, **options).stdout


def _first_line(error: Exception) -> str:
    """Why there is no library, in one line."""
    printed = (getattr(error, "stderr", None) or "").strip()
    return f"{error}: {printed.splitlines()[0]}" if printed else str(error)
