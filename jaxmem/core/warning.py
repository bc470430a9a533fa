"""warn: a warning that names the user's own line, however deep in this package it is raised."""

import sys
import warnings


def warn(message: str) -> None:
    """Warns (UserWarning) at the first line of the call stack that is outside this package.

    A fixed `stacklevel` counts frames: a decorator or one more function between moves the warning
    into this package, where its reader can change nothing.

    Example:
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     warn("the file has no vocabulary")
        >>> caught[0].category.__name__, str(caught[0].message)
        ('UserWarning', 'the file has no vocabulary')
    """
    package, level, frame = __name__.partition(".")[0], 1, sys._getframe()
    while frame is not None and frame.f_globals.get("__name__", "").split(".")[0] == package:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)
