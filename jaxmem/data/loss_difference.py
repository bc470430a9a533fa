"""difference_sampling: the texts on which a large model is better than a small one."""

from collections.abc import Sequence

import numpy as np

from ..core.arguments import AT_LEAST_0, ROW_OF_NUMBERS, takes


@takes(small=ROW_OF_NUMBERS, large=ROW_OF_NUMBERS, keep=AT_LEAST_0)
def difference_sampling(
    small: Sequence[float] | np.ndarray, large: Sequence[float] | np.ndarray, keep: float
) -> np.ndarray:
    """The indices, in order, of the share `keep` of texts where a large model gains most.

    A text that both models predict well is easy, and one that both predict badly is noise; where
    the large one alone does well there is something to learn (Gu et al., 2024: MiniPLM).
    `jm.evaluation.document_losses` gives the losses, and `Documents.take` the texts.

    Args:
        small: the small model's loss of each text (n,), a mean over its tokens in nats.
        large: the large model's (n,).
        keep: the share that is kept, above 0 and up to 1; at least one text is.

    Raises:
        ValueError: there are no texts, the lengths differ, a loss is not finite, or `keep` is no
            share.

    Example:
        >>> import jaxmem as jm
        >>> jm.data.difference_sampling([3.0, 2.0, 5.0, 4.0], [2.9, 1.0, 5.0, 2.0], 0.5).tolist()
        [1, 3]
    """
    small, large = np.asarray(small, np.float64), np.asarray(large, np.float64)
    if small.shape != large.shape or small.ndim != 1 or not len(small):
        raise ValueError(f"small has the shape {small.shape}, large {large.shape}, expected (n,)")
    for name, losses in (("small", small), ("large", large)):
        if not np.isfinite(losses).all():
            raise ValueError(
                f"{name} has a loss that is not finite, of text "
                f"{int(np.argmin(np.isfinite(losses)))}"
            )
    if not 0 < keep <= 1:
        raise ValueError(f"keep is {keep}, expected above 0 and up to 1")
    count = max(1, round(keep * len(small)))
    return np.sort(np.argsort(large - small, kind="stable")[:count])
