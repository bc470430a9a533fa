"""TextTree: a row of tokens in which texts share their first tokens, so that these are read once.

The tokens stand in order of depth: after a token come those that go on from it, then the next one
at its depth or less. Each text is a path, and a step of it, from a token to the next, is asked for.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

_OPEN_ROWS = 8  # that a text may still be added to

Request = tuple[tuple[int, ...], tuple[int, ...]]  # the ids of a context, and of a continuation


@dataclasses.dataclass
class TextTree:
    """Up to `room` tokens: their `ids`, their `depths`, and the `steps` that are asked for.

    A step (i, id) asks for the logprob of `id` after token i. `asked` has the numbers of each
    request's steps.

    Example:
        >>> tree = TextTree(16)
        >>> tree.add(((5, 6), (7, 8))), tree.add(((5, 6), (9,)))
        (None, None)
        >>> tree.ids, tree.depths, tree.steps
        ([5, 6, 7], [0, 1, 2], [(1, 7), (2, 8), (1, 9)])
    """

    room: int
    ids: list[int] = dataclasses.field(default_factory=list)
    depths: list[int] = dataclasses.field(default_factory=list)
    steps: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    asked: dict[Request, list[int]] = dataclasses.field(default_factory=dict)
    _last: tuple[int, ...] = ()
    _path: list[int] = dataclasses.field(default_factory=list)
    _numbers: dict[tuple[int, int], int] = dataclasses.field(default_factory=dict)

    @property
    def size(self) -> int:
        """The tokens or the steps, whichever are more."""
        return max(len(self.ids), len(self.steps))

    def more(self, requests: Iterable[Request]) -> int:
        """How many tokens or steps, whichever are more, the row has with the requests."""
        tokens, steps, last = len(self.ids), len(self.steps), self._last
        for context, continuation in requests:
            text = context + continuation
            common = _common(text, last)
            tokens += max(0, len(text) - 1 - min(common, max(len(last) - 1, 0)))
            steps += max(0, len(text) - max(common, len(context)))
            last = text
        return max(tokens, steps)

    def add(self, request: Request) -> None:
        """Adds the tokens that the row does not have, and asks for the continuation's steps."""
        context, continuation = request
        text = context + continuation
        # The last token of a text is asked for and not read.
        shared = min(_common(text, self._last), len(text) - 1, len(self._path))
        new = range(len(self.ids), len(self.ids) + len(text) - 1 - shared)
        self.ids += text[shared:-1]
        self.depths += range(shared, len(text) - 1)
        self._path[shared:], self._last = new, text
        steps = zip(self._path[len(context) - 1 :], continuation, strict=True)
        self.asked[request] = [self._number(step) for step in steps]

    def _number(self, step: tuple[int, int]) -> int:
        if step not in self._numbers:
            self._numbers[step] = len(self.steps)
            self.steps.append(step)
        return self._numbers[step]

    def ends(self) -> np.ndarray:
        """For each token the place of the first one after it that does not go on from it."""
        ends, open_ = np.full(len(self.ids), len(self.ids), np.int32), []
        for i, depth in enumerate(self.depths):
            while open_ and self.depths[open_[-1]] >= depth:
                ends[open_.pop()] = i
            open_.append(i)
        return ends


def trees_of(requests: Iterable[Request], *, room: int, most: int) -> list[TextTree]:
    """The requests in rows of up to `room` tokens; of a long context in one of up to `most`.

    Continuations of one context stand in one row if it holds them, and contexts that begin alike
    one after the other.

    Example:
        >>> asked = [((1, 2, 3), (4,)), ((1, 2, 3), (5, 6)), ((7,), (8,))]
        >>> trees = trees_of(asked, room=8, most=64)
        >>> [tree.ids for tree in trees]
        [[1, 2, 3, 5, 7]]
    """
    groups: dict[tuple[int, ...], list[Request]] = {}
    for request in sorted(set(requests)):
        groups.setdefault(request[0], []).append(request)
    rows: list[TextTree] = []
    for group in groups.values():
        is_long = len(group[0][0]) > room // 2  # a context that is worth a row of its own
        for part in _parts(group, most if is_long else room):
            size = TextTree(most).more(part)
            fits = [row for row in rows[-_OPEN_ROWS:] if row.more(part) <= row.room]
            if fits:
                row = min(fits, key=lambda row: row.more(part) - len(row.ids))
            else:
                row = TextTree(max(room, size))
                rows.append(row)
            for request in part:
                row.add(request)
    return rows


def arrays_of(trees: Sequence[TextTree], rows: int, width: int) -> tuple[np.ndarray, ...]:
    """(ids, depths, ends, after, targets), (rows, width) int32; steps that are none have target -1.

    A token that fills a row up sees itself only.
    """
    ids, depths, after = np.zeros((3, rows, width), np.int32)
    ends = np.tile(np.arange(1, width + 1, dtype=np.int32), (rows, 1))
    targets = np.full((rows, width), -1, np.int32)
    for i, tree in enumerate(trees):
        tokens, steps = len(tree.ids), len(tree.steps)
        ids[i, :tokens], depths[i, :tokens] = tree.ids, tree.depths
        ends[i, :tokens] = tree.ends()
        after[i, :steps], targets[i, :steps] = np.array(tree.steps, np.int32).T
    return ids, depths, ends, after, targets


def sums_of(
    trees: Sequence[TextTree], logprobs: np.ndarray, greedy: np.ndarray
) -> Iterator[tuple[Request, float, bool]]:
    """(request, the sum of its steps' logprobs, whether all are greedy); arrays (rows, steps)."""
    for tree, values, best in zip(trees, logprobs, greedy):
        for request, steps in tree.asked.items():
            yield request, float(values[steps].sum(dtype=np.float64)), bool(best[steps].all())


def _parts(group: list[Request], most: int) -> Iterator[list[Request]]:
    """The requests of one context in parts that a row of `most` tokens holds, or a single one."""
    part, tree = [], TextTree(most)
    for request in group:
        if part and tree.more([request]) > most:
            yield part
            part, tree = [], TextTree(most)
        part.append(request)
        tree.add(request)
    yield part


def _common(a: Sequence[Any], b: Sequence[Any]) -> int:
    """How many first tokens are the same."""
    for i, (x, y) in enumerate(zip(a, b)):
        if x != y:
            return i
    return min(len(a), len(b))
