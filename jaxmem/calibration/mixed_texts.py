"""mix_texts: several texts, such as those of several languages, calibrate in equal shares."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..core.arguments import MAPPING, takes


@takes(texts=MAPPING)
def mix_texts(texts: Mapping[str, Any], window: int) -> tuple[np.ndarray, dict[str, int]]:
    """(the token ids of all texts by turns, a window of each; how many tokens each text gave).

    Every method that reads only the beginning or the end of the result reads all texts. Each gives
    as many windows as the shortest has.

    Args:
        texts: {name: token ids (tokens,)}.
        window: tokens of a window, such as 1,024.

    Raises:
        ValueError: there is no text; a text is shorter than a window or no row of integers.

    Example:
        >>> mix_texts({"en": [1, 2, 3, 4, 5], "zh": [6, 7, 8, 9]}, 2)[0].tolist()
        [1, 2, 6, 7, 3, 4, 8, 9]
    """
    if not texts or window < 1:
        raise ValueError(f"{len(texts)} texts in windows of {window} tokens, expected 1 or more")
    rows = {}
    for name, ids in texts.items():
        array = np.asarray(ids)
        if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer) or len(array) < window:
            raise ValueError(
                f"{name} has shape {array.shape} and dtype {array.dtype}, expected at least "
                f"{window} token ids"
            )
        rows[name] = array[: len(array) // window * window].reshape(-1, window)
    count = min(map(len, rows.values()))
    mixed = np.stack([row[:count] for row in rows.values()], axis=1).reshape(-1)
    return mixed, dict.fromkeys(rows, count * window)
