"""usual_axes: the axes that a weight is summed over, by its name and its neighbours in the tree."""

from collections.abc import Mapping
from typing import Any

_TABLES = ("embedding", "embeddings")
_VECTORS = ("scale", "bias")  # parameters that have one axis, and two where layers are stacked


def usual_axes(path: str, leaves: Mapping[str, Any]) -> tuple[int, ...]:
    """The axes that a weight of this name is summed over in linen and NNX, from the end.

    An `embedding` is summed over its last axis, a `kernel` over the axes before those of its bias,
    and any other weight over its second last axis. `leaves` has all weights by path.

    Raises:
        ValueError: a kernel of more than two axes may be one of attention or of a convolution, or a
            stack of matrices, and nothing beside it tells.

    Example:
        >>> import numpy as np
        >>> usual_axes("query/kernel", {"query/kernel": np.ones((8, 4, 2))})
        Traceback (most recent call last):
        ValueError: query/kernel has the shape (8, 4, 2): a stack of matrices, or a kernel summed \
over other axes than the second last? Pass uses=jm.uses(fn, params, *args), which tells
    """
    module, _, name = path.rpartition("/")
    if name in _TABLES:
        return (-1,)
    if name != "kernel":
        return (-2,)
    kernel, bias = (
        tuple(getattr(leaves.get(f"{module}/{part}".lstrip("/")), "shape", ()))
        for part in (name, "bias")
    )
    if len(kernel) <= 2:
        return (-2,)
    is_dense_stack = bias == (*kernel[:-2], kernel[-1])
    axes = None if is_dense_stack else _axes_before_bias(kernel, bias)
    if axes is None:
        stacks = _stacked_axes(path, leaves)
        layer, bias = kernel[stacks:], bias[stacks:] if bias[:stacks] == kernel[:stacks] else ()
        axes = (-2,) if len(layer) == 2 else _axes_before_bias(layer, bias)
    if axes is None:
        raise ValueError(
            f"{path} has the shape {kernel}: a stack of matrices, or a kernel summed over other "
            "axes than the second last? Pass uses=jm.uses(fn, params, *args), which tells"
        )
    return axes


def _axes_before_bias(kernel: tuple, bias: tuple) -> tuple[int, ...] | None:
    """The axes of a kernel that its bias does not have; None if the bias is of another kernel."""
    fits = 0 < len(bias) < len(kernel) and kernel[-len(bias) :] == bias
    return tuple(range(-len(kernel), -len(bias))) if fits else None


def _stacked_axes(path: str, leaves: Mapping[str, Any]) -> int:
    """The number of first axes that count layers or experts.

    Below some module every weight of a stack has these axes. The vectors of norms and biases, or
    two kernels that are each other's transpose, tell such a module from one whose kernels merely
    have as many inputs.
    """
    shapes = {p: tuple(x.shape) for p, x in leaves.items() if hasattr(x, "shape")}
    kernel, parts = shapes[path], path.split("/")
    if "conv" in path.lower():  # its first axes are those of a window
        return 0
    modules = ["/".join(parts[:i]) for i in range(len(parts))]
    below = [{p: s for p, s in shapes.items() if not m or p.startswith(f"{m}/")} for m in modules]
    for count in range(len(kernel) - 2, 0, -1):
        stack = kernel[:count]
        for shapes in below:
            is_shared = all(shape[:count] == stack for shape in shapes.values())
            if is_shared and any(_is_layered(p, stack, shapes) for p in shapes):
                return count
    return 0


def _is_layered(path: str, stack: tuple, shapes: Mapping[str, tuple]) -> bool:
    """Whether the shape of this weight shows that `stack` counts layers or experts."""
    layer = shapes[path][len(stack) :]
    if path.rpartition("/")[2] in _VECTORS:
        return len(layer) == 1
    is_wide = len(layer) == 2 and layer[0] != layer[1]
    return is_wide and (*stack, *layer[::-1]) in shapes.values()
