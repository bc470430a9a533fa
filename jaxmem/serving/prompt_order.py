"""Prompts in the order of a walk through the tree of their prefixes, depth first."""

from collections.abc import Sequence

import numpy as np

from ..core.arguments import ROW_OF_INTEGERS, Kind, takes

_ROWS = Kind(
    "a list of token ids (tokens,)",
    lambda x: isinstance(x, list | tuple) and all(map(ROW_OF_INTEGERS.accepts, x)),
)


@takes(prompts=_ROWS)
def depth_first(prompts: Sequence[np.ndarray]) -> list[int]:
    """The order in which prompts that share a prefix stand together.

    It is the lexicographic order of their tokens. Whoever reads them in this order finds every
    shared prefix with the memory of one prompt, where a cache of any size in the order of arrival
    finds no more (Zheng et al., SGLang, 2024, theorem 3.1).

    Args:
        prompts: token ids (tokens,) of each.

    Returns:
        Indices of `prompts`. Equal prompts keep their order.

    Example:
        >>> import numpy as np
        >>> depth_first([np.array([7, 1]), np.array([2]), np.array([7]), np.array([2, 9])])
        [1, 3, 2, 0]
    """
    keys = [np.asarray(ids).astype(">u4").tobytes() for ids in prompts]  # big end first: as numbers
    return sorted(range(len(keys)), key=lambda i: (keys[i], i))
