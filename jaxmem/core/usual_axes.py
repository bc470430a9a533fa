"""usual_axes: the axes that a weight is summed over, by its name and its neighbours in the tree."""

import re
from collections.abc import Mapping
from typing import Any

# names of look-up tables: embedding, embed_tokens, tok_embeddings, pos_emb, wte, table
_TABLE = re.compile(r"(.*_)?(emb|embed|embeds|embeddings?|embed_tokens|wte|wpe|table)")
_VECTORS = ("scale", "bias")  # parameters that have one axis, and two where layers are stacked


def usual_axes(path: str, leaves: Mapping[str, Any]) -> tuple[int, ...]:
    """The axes that a weight of this name is summed over in linen and NNX, from the end.

    A table, such as an `embedding` or `wte`, is summed over its last axis, a `kernel` over the axes
    before those of its bias, and any other weight over its second last axis. `leaves` has all
    weights by path.

    Raises:
        ValueError: a weight of more than two axes may be one of attention or of a convolution, or a
            stack of matrices: it is a kernel and nothing beside it tells, or its first axis is as
            long as a later one of another weight, and so may be a width.

    Example:
        >>> import numpy as np
        >>> usual_axes("query/kernel", {"query/kernel": np.ones((8, 4, 2))})
        Traceback (most recent call last):
        ValueError: query/kernel has the shape (8, 4, 2): a stack of matrices, or a kernel summed \
over other axes than the second last? Pass uses=jm.uses(fn, params, *args), which tells
    """
    module, _, name = path.rpartition("/")
    if _TABLE.fullmatch(name.lower()):
        return (-1,)
    if name != "kernel":
        if _may_start_with_a_width(path, leaves):
            raise ValueError(_message(path, leaves[path].shape))
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
        raise ValueError(_message(path, kernel))
    return axes


def _message(path: str, shape: tuple) -> str:
    """What is asked of the caller where nothing tells the axes."""
    return (
        f"{path} has the shape {shape}: a stack of matrices, or a kernel summed over other axes "
        "than the second last? Pass uses=jm.uses(fn, params, *args), which tells"
    )


def _may_start_with_a_width(path: str, leaves: Mapping[str, Any]) -> bool:
    """Whether the first of three axes or more may be a width, as in attention, not count layers.

    The number of layers is the length of no other axis: a vector as long as the first axis, or a
    later axis of another weight, shows a width or a number of heads.
    """
    weight = tuple(getattr(leaves.get(path), "shape", ()))
    if len(weight) <= 2:
        return False
    others = (tuple(x.shape) for p, x in leaves.items() if p != path and hasattr(x, "shape"))
    return any(weight[0] in shape[1:] or shape == weight[:1] for shape in others)


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
