"""least_by_fronts: a multiple-choice knapsack by dynamic programming over sums that may be best.

Row after row, the sums of sizes and losses that no other sum beats in both are kept (Nemhauser and
Ullmann, 1969). A sum is dropped, too, if the relaxed problem of the rows that are left cannot bring
it below the loss of a choice that is known (Dyer, Kayal and Walker, 1984).
"""

from collections.abc import Sequence

import numpy as np

MOST_SUMS = 2**12  # that are kept after a row: beyond that a solver of integer programs is faster
_ROUNDING = 1e-12  # of sums of losses, relative to the largest


def least_by_fronts(
    sizes: Sequence[np.ndarray], losses: Sequence[np.ndarray], limit: int
) -> list[int] | None:
    """The choice in each row of least loss whose sizes add up to at most `limit`.

    None if more than `MOST_SUMS` sums would have to be kept, or if no choice is as small.

    Args:
        sizes: bytes of the choices of each row, (choices,) each.
        losses: losses of the choices, in any unit.
        limit: the most bytes.

    Example:
        >>> sizes, losses = [np.array([1, 2, 4])] * 2, [np.array([9.0, 5.0, 0.0])] * 2
        >>> least_by_fronts(sizes, losses, 5), least_by_fronts(sizes, losses, 7)
        ([0, 2], [1, 2])
    """
    edges = [_lower_edge(*row) for row in zip(sizes, losses)]
    relaxed = [_relaxed(edges[i:]) for i in range(len(edges) + 1)]
    known = _rounded_down(edges, limit)
    if known is None:
        return None
    worth_keeping = known + _ROUNDING * sum(row.max() for row in losses)
    size, loss = np.zeros(1), np.zeros(1)
    steps = []
    for row_size, row_loss, (bytes_left, loss_left) in zip(sizes, losses, relaxed[1:]):
        new_size = (size[:, None] + row_size).ravel()
        new_loss = (loss[:, None] + row_loss).ravel()
        least = np.interp(limit - new_size, bytes_left, loss_left, left=np.inf)
        may = np.flatnonzero(new_loss + least <= worth_keeping)
        order = may[np.lexsort((new_loss[may], new_size[may]))]
        best_before = np.minimum.accumulate(np.r_[np.inf, new_loss[order]])[:-1]
        kept = order[new_loss[order] < best_before]
        if not 0 < len(kept) <= MOST_SUMS:
            return None
        steps.append(np.divmod(kept, len(row_size)))
        size, loss = new_size[kept], new_loss[kept]
    at, choices = len(loss) - 1, []  # the largest sum has the least loss
    for before, choice in reversed(steps):
        choices.append(int(choice[at]))
        at = before[at]
    return choices[::-1]


def _lower_edge(size: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """The choices (points, 2) on the convex lower edge of (size, loss), by size; losses fall."""
    points: list[np.ndarray] = []
    for point in np.column_stack([size, loss])[np.lexsort((loss, size))]:
        if points and point[1] >= points[-1][1]:
            continue
        while len(points) > 1 and _turns_down(*points[-2:], point):
            points.pop()
        points.append(point)
    return np.array(points)


def _turns_down(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> bool:
    """Whether b is on or above the line from a to c."""
    return (b[0] - a[0]) * (c[1] - a[1]) <= (b[1] - a[1]) * (c[0] - a[0])


def _segments(edges: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(the smallest choices together (2,), what each step up adds (steps, 2), its row), by gain."""
    start = sum((edge[0] for edge in edges), np.zeros(2))
    steps = np.concatenate([np.zeros((0, 2)), *(np.diff(edge, axis=0) for edge in edges)])
    row = np.repeat(np.arange(len(edges)), [len(edge) - 1 for edge in edges])
    order = np.argsort(steps[:, 1] / np.maximum(steps[:, 0], 1), kind="stable")
    return start, steps[order], row[order]


def _relaxed(edges: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(bytes, the least loss in them) at the corners of the relaxed problem of some rows."""
    start, steps, _ = _segments(edges)
    return tuple(np.cumsum(np.vstack([start, steps]), 0).T)


def _rounded_down(edges: Sequence[np.ndarray], limit: int) -> float | None:
    """The loss of a choice that fits: each row goes up as far as it can, best gain first."""
    total, steps, rows = _segments(edges)
    if total[0] > limit:
        return None
    stopped = set()
    for step, row in zip(steps, rows):
        if row in stopped or total[0] + step[0] > limit:
            stopped.add(row)
        else:
            total = total + step
    return float(total[1])
