"""has_coded_scales: whether the compiled product of integers decodes a leaf's scales itself."""

from typing import Any

import jax.numpy as jnp
import numpy as np

CODE_BITS = (4, 6, 8)  # of the scales


def has_coded_scales(leaf: Any) -> bool:
    """Whether the scales of packed integers, and what their smallest codes mean, are integers too.

    They are codes of 4, 6 or 8 bits along the rows of (n, groups), times float16 units.
    """
    middle, low = getattr(leaf, "middle_code", None), getattr(leaf, "low", None)
    if middle is None or (low is None and middle == 0 and leaf.bits < 8):
        return False  # no integers, or what their smallest codes mean is 0
    forms = {_form(a, leaf.fold.n) for a in (leaf.scale, low) if a is not None}
    return len(forms) == 1 and None not in forms


def scale_attributes(leaf: Any) -> dict[str, Any]:
    """The library's attributes of the scales of a leaf with coded scales, and of one without."""
    bits, middle, group, _ = _form(leaf.scale, leaf.fold.n) or (0, 0, 1, None)
    sizes = dict(scale_bits=bits, scale_middle=middle, scale_group=group)
    return {name: np.int64(size) for name, size in sizes.items()}


def _form(numbers: Any, n: int) -> tuple | None:
    """(bits, the code of 0, groups of a unit, shape) of coded numbers (*stack, groups, n)."""
    middle, fold = getattr(numbers, "middle_code", None), getattr(numbers, "fold", None)
    if middle is None or numbers.bits not in CODE_BITS or numbers.scale.dtype != jnp.float16:
        return None
    by_row = fold.n == n and fold.order == (-1, -2) and getattr(numbers, "low", None) is None
    return (numbers.bits, middle, numbers.group, numbers.shape) if by_row else None
