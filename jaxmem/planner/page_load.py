"""pages_at_load: n · mean + z · √(n · variance) pages hold n rows of a load, nearly always."""

import csv
import math
import os
import pathlib
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from ..core.arguments import POSITIVE, Kind, takes

_LOAD = Kind(
    "pairs (tokens of a prompt, tokens generated)",
    lambda x: (
        not isinstance(x, str | bytes)
        and hasattr(x, "__len__")
        and len(x) > 0
        and np.ndim(x) == 2
        and np.shape(x)[1] == 2
        and np.issubdtype(np.asarray(x).dtype, np.number)
    ),
)
_PATH = Kind("a path", lambda x: isinstance(x, str | os.PathLike))
COLUMNS = "ContextTokens", "GeneratedTokens"


@takes(load=_LOAD, rows=POSITIVE, size=POSITIVE)
def pages_at_load(
    load: Sequence[tuple[int, int]], rows: int, *, size: int = 64, share: float = 0.99
) -> int:
    """How many pages of `size` tokens hold `rows` rows that generate at once, in `share` of steps.

    A request of c tokens that generates g more is at work for g steps, and has ⌈(c + t)/size⌉ pages
    at step t. A row runs one request after the other, so that longer answers weigh more; the rows
    are taken to be independent, and their sum normal. The longest request alone always fits. An
    engine swaps or reads again in the steps that are left.

    Args:
        load: (tokens of the prompt, tokens generated) of each request.
        rows: rows that generate at the same time.
        size: tokens of a page.
        share: of the steps in which all rows have their pages.

    Raises:
        ValueError: a request has no tokens to read or generate; `share` is not between 0 and 1.

    Example:
        >>> pages_at_load([(100, 28), (60, 4)], rows=1), pages_at_load([(100, 28)], rows=16)
        (2, 32)
    """
    if not 0 < share < 1:
        raise ValueError(f"share is {share}, expected a number between 0 and 1")
    context, generated = np.asarray(load, np.int64).T
    if context.min() < 1 or generated.min() < 1:
        raise ValueError("a request of the load has no tokens, expected at least 1 of each kind")
    total = context + generated
    steps = generated.sum()
    mean = (_pages(total, size) - _pages(context, size)).sum() / steps
    square = (_squares(total, size) - _squares(context, size)).sum() / steps
    spread = math.sqrt(max(rows * (square - mean**2), 0.0))
    most = math.ceil(rows * mean + NormalDist().inv_cdf(share) * spread)
    longest = -(-int(total.max()) // size)
    return max(min(most, rows * longest), longest)


def tokens_read(load: Sequence[tuple[int, int]]) -> float:
    """Tokens of prompts that are read for each token that a load generates.

    Example:
        >>> tokens_read([(100, 28), (60, 4)])
        5.0
    """
    context, generated = np.asarray(load, np.int64).sum(0)
    return float(context / generated)


def _pages(n: np.ndarray, size: int) -> np.ndarray:
    """Σ ⌈t / size⌉ for t = 1 … n."""
    q, r = n // size, n % size
    return (size * q * (q + 1) / 2 + r * (q + 1)).astype(np.float64)


def _squares(n: np.ndarray, size: int) -> np.ndarray:
    """Σ ⌈t / size⌉² for t = 1 … n."""
    q, r = n // size, n % size
    return size * q * (q + 1) * (2 * q + 1) / 6 + r * (q + 1.0) ** 2


@takes(path=_PATH)
def read_load(path: str | os.PathLike) -> list[tuple[int, int]]:
    """The requests of a trace file: CSV with columns ContextTokens and GeneratedTokens.

    The traces that Azure publishes (Patel et al., Splitwise, 2024) are such files. Requests that
    generated nothing are left out.

    Raises:
        ValueError: the file is missing or has no such columns; a value is no number; the message
            has the line.

    Example:
        >>> import pathlib, tempfile
        >>> text = "TIMESTAMP,ContextTokens,GeneratedTokens\\n0,374,44\\n1,396,109\\n"
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "trace.csv")
        ...     _ = path.write_text(text)
        ...     read_load(path)
        [(374, 44), (396, 109)]
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(f"load is {path}, which is no file")
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if not set(COLUMNS) <= set(reader.fieldnames or ()):
            raise ValueError(
                f"{path} has columns {reader.fieldnames}, expected {' and '.join(COLUMNS)}"
            )
        requests = []
        for row in reader:
            try:
                context, generated = (int(row[name]) for name in COLUMNS)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {reader.line_num}: {error}") from error
            if generated > 0:
                requests.append((context, generated))
    if not requests:
        raise ValueError(f"{path} has no request that generated tokens")
    return requests
