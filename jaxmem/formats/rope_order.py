"""The two orders of rotary dimensions: neighbours in a pair, or first and second half."""

import numpy as np


def halves(pairs: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k from interleaved rope order to the order that rotates half against half.

    llama2.c and GGUF store row pairs (2i, 2i+1) of a head that turn together; our models, like
    transformers, keep them head_dim / 2 apart.

    Example:
        >>> import numpy as np
        >>> from jaxmem.formats.rope_order import halves
        >>> halves(np.array([0, 10, 1, 11, 2, 12, 3, 13]), heads=2)
        array([ 0,  1, 10, 11,  2,  3, 12, 13])
    """
    rest = pairs.shape[1:]
    return pairs.reshape(heads, -1, 2, *rest).swapaxes(1, 2).reshape(-1, *rest)
