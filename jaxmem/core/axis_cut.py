"""Cut: where an array is cut into blocks of entries of an axis."""

from typing import NamedTuple

_MOST_GROUP = 1024  # entries of the axis that one number of an array may belong to


class Cut(NamedTuple):
    """The axis of an array that is cut, and its size: each of its entries has as many of the whole.

    A scale of each 64 weights of a row has an axis of 1/64 of the row.
    """

    axis: int
    size: int


def first_cut(shape: tuple[int, ...], entries: int, in_groups: bool) -> Cut | None:
    """How an argument is cut: along an axis of `entries`, or of groups of them."""
    if entries in shape:
        return Cut(shape.index(entries), entries)
    is_part = lambda n: n > 1 and entries % n == 0 and entries // n <= _MOST_GROUP
    axes = [a for a, n in enumerate(shape) if is_part(n)] if in_groups and len(shape) > 1 else []
    return Cut(axes[-1], shape[axes[-1]]) if axes else None
