"""padded_widths, padded_rows: the shapes of batches for which padding and compilation cost least.

Both are counted in tokens: a program that is not compiled yet costs as much as so many tokens.
"""

from collections import Counter
from collections.abc import Collection, Sequence


def padded_widths(
    lengths: Sequence[int], compiled: Collection[int] = (), *, program: int, most: int
) -> list[int]:
    """The widths that texts are padded to, each to the first that holds it; the least cost of all.

    Widths are 8, 16, 24, 32, 48, 64, 96, 128 ..., and `most`.

    Args:
        lengths: tokens of each text, from 1 to `most`.
        compiled: widths that have a program.
        program: tokens that another program costs.
        most: the largest width.

    Example:
        >>> padded_widths([5, 20, 20, 60], program=0, most=100)
        [8, 24, 64]
        >>> padded_widths([5, 20, 20, 60], program=200, most=100)
        [64]
        >>> padded_widths([5, 20, 20, 60], [32], program=200, most=100)
        [32, 64]
    """
    counts = Counter(min(rounded(n), most) for n in lengths)
    sizes = sorted({*counts, *(n for n in compiled if n <= most)})
    # best[j]: the least cost of all texts up to sizes[j], and the widths of it, of which it is one.
    best: list[tuple[int, list[int]]] = []
    for j, width in enumerate(sizes):
        texts = lambda i: sum(counts[size] for size in sizes[i : j + 1])  # noqa: B023
        before = [(0, []), *best]
        cost, widths = min(
            (before[i][0] + width * texts(i), before[i][1]) for i in range(len(before))
        )
        best.append((cost + (0 if width in compiled else program), [*widths, width]))
    return min(one for one in best if one[1][-1] >= max(counts))[1]


def padded_rows(
    count: int, width: int, compiled: Collection[int] = (), *, program: int, most: int
) -> int:
    """The rows, a power of two up to `most`, of a batch with `count` texts of a width.

    Example:
        >>> padded_rows(3, 64, program=0, most=16), padded_rows(3, 64, [16], program=1000, most=16)
        (4, 16)
    """
    rows = [1 << i for i in range(most.bit_length()) if 1 << i >= count]
    return min(rows, key=lambda n: (n * width + (0 if n in compiled else program), n))


def rounded(length: int) -> int:
    """The least of 8, 16, 24, 32, 48, 64, 96, 128, ... that is no less than `length`."""
    power = max(8, 1 << (length - 1).bit_length())
    return power * 3 // 4 if length <= power * 3 // 4 and power > 16 else power
