"""Progress of long work, as one callback: progress(stage, done, total)."""

import contextlib
from collections.abc import Callable, Iterator

Progress = Callable[[str, int, int], None]
"""Takes ("planning", 0, 1) when a stage starts, then (stage, done, total) until its end."""


@contextlib.contextmanager
def stage(progress: Progress | None, name: str) -> Iterator[Callable[[int, int], None]]:
    """Reports that a stage starts and ends; yields a function that takes (done, total) in between.

    Example:
        >>> with stage(lambda *report: print(*report), "planning") as count:
        ...     count(1, 2)
        planning 0 1
        planning 1 2
        planning 1 1
    """
    report = progress or (lambda name, done, total: None)
    report(name, 0, 1)
    yield lambda done, total: report(name, done, total)
    report(name, 1, 1)
