"""JoinedRows: the rows of several sources beside each other."""

from collections.abc import Sequence
from typing import Any

import numpy as np


class JoinedRows(Sequence):
    """The rows of several sources, field by field: `joined[i]` has the fields of all of them.

    With it `jm.data.Batches` gives `jm.data.PackedRows` and what a teacher said of them
    (`jm.data.KeptLogits`) in one batch. It is a `RandomAccessDataSource` of grain.

    Raises:
        ValueError: there are no sources, they have not as many rows, or two have a field of one
            name.

    Example:
        >>> import jaxmem as jm
        >>> rows = jm.data.PackedRows([[5, 6, 7]], 4)
        >>> sorted(jm.data.JoinedRows(rows, [{"weight": np.ones(4)}])[0])
        ['ids', 'mask', 'positions', 'segments', 'weight']
    """

    def __init__(self, *sources: Sequence):
        lengths = [len(source) for source in sources]
        if len(set(lengths)) != 1:
            raise ValueError(f"sources have {lengths} rows, expected as many of each")
        self.sources = sources
        if lengths[0]:
            self[0]  # fields of one name are refused here

    def __len__(self) -> int:
        return len(self.sources[0])

    def __getitem__(self, at: Any) -> dict[str, np.ndarray]:
        row: dict[str, np.ndarray] = {}
        for source in self.sources:
            fields = source[at]
            if double := sorted(set(row) & set(fields)):
                raise ValueError(f"two sources have the field {double[0]!r}")
            row |= fields
        return row
