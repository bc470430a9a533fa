"""tuples: batches for a function of (params, *batch), each checked when it is drawn."""

from collections.abc import Iterable, Iterator

from ..core.arguments import shown


def tuples(batches: Iterable[tuple], to: str) -> Iterator[tuple]:
    """Yields each batch; `to` is the name of the function that takes them, for messages.

    Raises:
        ValueError: there is no batch.
        TypeError: a batch is no tuple of arguments, such as an array by itself.

    Example:
        >>> list(tuples([(1, 2)], "stats"))
        [(1, 2)]
    """
    batch = None
    for batch in batches:
        if not isinstance(batch, tuple | list):
            raise TypeError(
                f"{to} takes batches that are tuples, such as (ids,), got {shown(batch)}"
            )
        yield batch
    if batch is None:
        raise ValueError(f"{to} takes at least one batch, got none")
