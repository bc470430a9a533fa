"""Weights that a checkpoint holds as a gain and a direction: w = g v / |v|."""

import functools

import numpy as np

from ..core.lazy import Lazy, combined

# The ends of the names of the gain and of the direction, of new and of old files.
_ENDS = ((".parametrizations.weight.original0", ".parametrizations.weight.original1"),)
_ENDS += ((".weight_g", ".weight_v"),)


def joined(tensors: dict[str, Lazy]) -> dict[str, Lazy]:
    """The tensors with a `weight` in place of each pair of gain and direction.

    The norm is over the axes that have length 1 in the gain (Salimans & Kingma, 2016).

    Raises:
        ValueError: a gain has another number of axes than its direction.

    Example:
        >>> import numpy as np
        >>> from jaxmem.core.lazy import Lazy
        >>> lazy = lambda w: Lazy(w.shape, w.dtype, lambda _: w)
        >>> g, v = np.float32([[10.0]]), np.float32([[3.0, 4.0]])
        >>> joined({"conv.weight_g": lazy(g), "conv.weight_v": lazy(v)})["conv.weight"].load()
        array([[6., 8.]], dtype=float32)
    """
    out = dict(tensors)
    for gain_end, direction_end in _ENDS:
        for name in [name for name in tensors if name.endswith(gain_end)]:
            stem = name.removesuffix(gain_end)
            direction = tensors.get(f"{stem}{direction_end}")
            if direction is None:
                continue
            gain = tensors[name]
            if gain.ndim != direction.ndim:
                raise ValueError(
                    f"{name} has shape {gain.shape}, expected {direction.ndim} axes as of "
                    f"{stem}{direction_end}"
                )
            axes = tuple(a for a, size in enumerate(gain.shape) if size == 1)
            del out[name], out[f"{stem}{direction_end}"]
            out[f"{stem}.weight"] = combined(
                functools.partial(_weight, axes), direction, gain, shape=direction.shape
            )
    return out


def _weight(axes: tuple[int, ...], direction: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """The weight of a direction with length 1 over `axes`, times its gain; zero stays zero."""
    length = np.sqrt((direction * direction).sum(axes, keepdims=True))
    return direction * (gain / np.maximum(length, np.finfo(np.float32).tiny))
