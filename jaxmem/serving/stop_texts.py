"""Where an answer ends because of a stop text, and how much of it can be shown before."""

from collections.abc import Sequence


def first_stop(text: str, stops: Sequence[str], *, start: int = 0) -> int | None:
    """Where the first of the stop texts begins in `text`, from `start` on; None if none is there.

    Example:
        >>> first_stop("to be or not", (" not", " or"))
        5
    """
    places = [at for stop in stops if (at := text.find(stop, start)) >= 0]
    return min(places) if places else None


def safe_length(text: str, stops: Sequence[str]) -> int:
    """How many characters of `text` no stop text can take back once more text follows.

    What is left may be the first part of a stop text, or of a character whose bytes come in several
    tokens.

    Example:
        >>> safe_length("Hello. Th", ("The End",)), safe_length("caf\\ufffd", ())
        (7, 3)
    """
    length = len(text) - (len(text) - len(text.rstrip("\ufffd")))
    parts = (n for stop in stops for n in range(1, len(stop)) if text[:length].endswith(stop[:n]))
    return length - max(parts, default=0)
