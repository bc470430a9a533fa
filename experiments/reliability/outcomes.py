"""What became of one attempt: its class, and how it is told.

- right: the result is what it should be.
- clear: our own error (or warning), which names the file or the argument.
- valid: a file without checksums loads as another file that someone could have written.
- unnamed: our own error, which names neither.
- raw: an error of another kind, or one that other code raises.
- wrong: another result than the right one, in silence.
- hang: no answer within the time.

The first three are what a user can live with: `BAD` has the others.
"""

import contextlib
import json
import pathlib
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jaxmem as jm

BAD = ("unnamed", "raw", "wrong", "hang")
OURS = (TypeError, ValueError, NotImplementedError, OSError, ImportError)
PACKAGE = pathlib.Path(jm.__file__).parent


class Outcome(NamedTuple):
    result: str  # one of the classes above
    text: str = ""  # the error, for a reader


def is_ours(error: BaseException) -> bool:
    """Whether a `raise` of the package made the error, not an operation on the value.

    Where there is no such file, Python's own error names it.
    """
    if isinstance(error, FileNotFoundError):
        return True
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return PACKAGE in pathlib.Path(frame.filename).parents and "raise" in (frame.line or "")


def outcome(attempt: Callable[[], str], names: Sequence[str], seconds: float) -> Outcome:
    """The outcome of `attempt`, which returns a class itself if it raises nothing.

    `names` are the words of which a clear message has one.
    """
    try:
        with time_limit(seconds):
            return Outcome(attempt())
    except TimeoutError:
        return Outcome("hang")
    except Exception as error:  # every kind of error is an outcome
        text = f"{type(error).__name__}: {error}".split("\n")[0][:200]
        if not isinstance(error, OURS) or not is_ours(error):
            return Outcome("raw", text)
        return Outcome("clear" if any(name in str(error) for name in names) else "unnamed", text)


def once(log: pathlib.Path | None, key: str, run: Callable[[], Any]) -> Any:
    """What `run` returned under this key before, by a file of JSON lines; else what it returns now.

    A part of hours that was stopped goes on where it stood: `log` keeps each result when it comes.
    """
    if log and log.exists():
        for line in log.read_text().splitlines():
            known, result = json.loads(line)
            if known == key:
                return result
    result = run()
    if log:
        with log.open("a") as file:
            file.write(json.dumps([key, result]) + "\n")
    return result


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in the block after some seconds."""

    def stop(*_: Any) -> None:
        raise TimeoutError

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
