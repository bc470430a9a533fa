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


def names(name: str) -> tuple[str, str]:
    """The names of the gain and of the direction of the tensor `name`, in new files.

    Example:
        >>> names("conv.weight")[0]
        'conv.parametrizations.weight.original0'
    """
    gain, direction = (name.removesuffix(".weight") + end for end in _ENDS[0])
    return gain, direction


def separated(w: np.ndarray, axes: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """A gain, the length of `w` over `axes`, and a direction, `w` itself, of which `joined` is `w`.

    Example:
        >>> separated(np.float32([[3.0, 4.0]]), (1,))[0]
        array([[5.]], dtype=float32)
    """
    return np.maximum(_length(w, axes), np.finfo(np.float32).tiny), w


def _length(w: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    return np.sqrt((w * w).sum(axes, keepdims=True))


def _weight(axes: tuple[int, ...], direction: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """The weight of a direction with length 1 over `axes`, times its gain; zero stays zero."""
    return direction * (gain / np.maximum(_length(direction, axes), np.finfo(np.float32).tiny))
