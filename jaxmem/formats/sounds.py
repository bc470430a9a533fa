"""Checks of the sounds that a processor is given."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def checked_sounds(sounds: Sequence[Any], rate: int, expected: int) -> list[np.ndarray]:
    """The sounds as arrays (samples,) f32.

    Args:
        sounds: a list of arrays, or of lists of numbers.
        rate: of the sounds, in samples a second.
        expected: that of the model.

    Raises:
        TypeError: `sounds` is no list.
        ValueError: there is no sound, a sound has not one axis, or no sample; the rate is another.

    Example:
        >>> checked_sounds([[0, 1], [2]], 16_000, 16_000)
        [array([0., 1.], dtype=float32), array([2.], dtype=float32)]
    """
    if rate != expected:
        raise ValueError(f"the sounds have {rate} samples a second, expected {expected}")
    if isinstance(sounds, np.ndarray | str) or not isinstance(sounds, Sequence):
        raise TypeError(f"sounds are {type(sounds).__name__}, expected a list of arrays")
    if not sounds:
        raise ValueError("there are no sounds, expected at least one")
    arrays = [np.asarray(sound, np.float32) for sound in sounds]
    for x in arrays:
        if x.ndim != 1 or not x.size:
            raise ValueError(f"a sound has shape {x.shape}, expected (samples,) of one channel")
    return arrays
