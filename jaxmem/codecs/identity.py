"""Keep: the codec that leaves a weight dense, so that callers never branch."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Keep:
    """Leaves the weight dense; it can be a rule or a candidate like any other codec.

    Example:
        >>> import numpy as np
        >>> Keep().encode(np.ones(3))
        array([1., 1., 1.])
    """

    def encode(self, w: Any, axes: tuple[int, ...] = (-2,), stats: Any = None) -> Any:
        return w
