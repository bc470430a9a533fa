"""tuples: the batches that a function of (params, *batch) runs on, each checked as it comes."""

from collections.abc import Iterable, Iterator


def tuples(batches: Iterable[tuple], to: str) -> Iterator[tuple]:
    """Each batch; `to` is who takes them, for the message.

    Raises:
        ValueError: there is none.
        TypeError: one is no tuple of arguments, such as an array by itself.

    Example:
        >>> list(tuples([(1, 2)], "stats"))
        [(1, 2)]
    """
    batch = None
    for batch in batches:
        if not isinstance(batch, tuple | list):
            kind = type(batch).__name__
            raise TypeError(f"{to} takes batches that are tuples, such as (ids,), got {kind}")
        yield batch
    if batch is None:
        raise ValueError(f"{to} takes at least one batch, got none")
