"""resumable: an iterator of batches with the two methods by which a run is continued."""

from collections.abc import Iterator
from typing import Any


def is_resumable(batches: Any) -> bool:
    """Whether batches say where they are, as `jm.data.Batches` or an iterator of grain does."""
    pairs = ("state", "restore"), ("get_state", "set_state")
    return hasattr(batches, "__next__") and any(
        all(hasattr(batches, name) for name in pair) for pair in pairs
    )


def resumable(batches: Any) -> Any:
    """The batches with `state()` and `restore(state)`, which those of grain call otherwise.

    Example:
        >>> import grain
        >>> numbers = resumable(iter(grain.MapDataset.range(9).to_iter_dataset()))
        >>> first, state = next(numbers), numbers.state()
        >>> second = next(numbers)
        >>> numbers.restore(state)
        >>> next(numbers) == second != first
        True
    """
    return batches if hasattr(batches, "restore") else _OfGrain(batches)


class _OfGrain:
    """An iterator of grain, whose state is a dict that JSON can hold."""

    def __init__(self, iterator: Any):
        self._iterator = iterator

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self._iterator)

    def state(self) -> Any:
        """Where the iterator is."""
        return self._iterator.get_state()

    def restore(self, state: Any) -> None:
        """Goes on where `state` was taken."""
        self._iterator.set_state(state)
