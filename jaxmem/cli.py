"""The library from a shell: `jaxmem COMMAND`, one for each module of `commands`."""

import contextlib
import gc
import json
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence

_DESCRIPTION = """Fit any language model into the memory you have.

A MODEL is smollm2-135m, gemma-3-270m, minilm-l3, minilm-l6, mpnet-base or whisper-tiny.en (fetched
once), llama-1b, llama-8b or llama-70b (shapes only), a directory with config.json and safetensors,
a .safetensors, .gguf, .onnx or llama2.c .bin file, hf://org/name, or a directory that `jaxmem fit`
wrote.
`jaxmem --version` prints the version.
"""


def main(args: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; `args` is what follows `jaxmem` on the line.

    `--version` alone prints the version, for which no extra is needed.

    0: done. 1: it could not be done (a download, a missing package, a full disk, a dead compiler).
    2: the input is wrong. 130: interrupted. Findings go to stdout and progress to stderr; with
    `--json` one JSON object is alone on stdout. Compiled programs are kept for the next run, unless
    there is `--no-cache`. Errors are one line; JAXMEM_TRACEBACK=1 shows
    where they came from.

    Raises:
        SystemExit: the line itself is wrong (2), or asks for help (0).
    """
    if args is not None:
        return _run(list(args))
    gc.freeze()  # the process is this command's alone, and what is imported stays
    code = _run(sys.argv[1:])
    if code:
        from .io.multihost import leave

        leave(code)
    return code


def _run(args: list[str]) -> int:
    """Runs one command and returns its exit code."""
    if args == ["--version"]:
        from . import __version__

        print(f"jaxmem {__version__}")
        return 0
    try:
        from .commands import Output, parsed
        from .compiler.compile_subprocess import CompileError
        from .io.program_cache import kept_programs
    except ModuleNotFoundError as error:
        if error.name.split(".")[0] not in ("tyro", "rich"):
            raise
        return _failed(f'the command line wants {error.name}: pip install "jaxmem[demo]"', 1)
    command = parsed(args, description=_DESCRIPTION)
    expected = () if os.environ.get("JAXMEM_TRACEBACK") else (Exception,)
    try:
        programs = contextlib.nullcontext() if command.no_cache else kept_programs()
        with _interruptible() as signals, _warnings_on_a_line(), programs:
            found = command.run(Output(json=command.json))
        if signals:  # Python drops an exception that a signal raises inside a destructor
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        return _failed("interrupted; nothing was left half-written", 130)
    except expected as error:
        paths = FileNotFoundError | IsADirectoryError | NotADirectoryError
        if isinstance(error, ValueError | TypeError | paths):
            return _failed(error, 2)
        if isinstance(
            error, ImportError | OSError | CompileError
        ):  # ConnectionError and a full disk are OSError
            return _failed(error, 1)
        raise
    if command.json and found is not None:  # of several processes the first one has it
        print(json.dumps(found, indent=1))
    return 0


def _failed(message: object, code: int) -> int:
    line = " ".join(str(message).split()) or type(message).__name__
    print(f"jaxmem: {line}", file=sys.stderr)
    return code


@contextlib.contextmanager
def _warnings_on_a_line() -> Iterator[None]:
    """A warning is one line on stderr, as an error is, without the line of code that gave it."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: _failed(f"warning: {message}", 0)
        yield


@contextlib.contextmanager
def _interruptible() -> Iterator[list[int]]:
    """Ctrl-C and a termination raise KeyboardInterrupt; the list is of the signals that came."""
    signals: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield signals  # only the main thread may say what a signal does
        return

    def interrupt(number: int, _: object) -> None:
        signals.append(number)
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # a shell ignores Ctrl-C for what runs in the background
            signal.signal(number, interrupt)
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":  # python -m jaxmem.cli
    sys.exit(main())
