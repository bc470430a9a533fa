"""The tensors of a checkpoint from the arrays of the parameters: weight maps read backwards."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from .weight_map import WeightMap, same

Layout = Callable[[np.ndarray], np.ndarray]


def by_tensors(weight_maps: dict[str, WeightMap]) -> list[dict[str, WeightMap]]:
    """The weight maps in groups: those of a group are read from the same tensors.

    Raises:
        ValueError: two groups share a tensor, or parameters do not fill their tensor.

    Example:
        >>> from jaxmem.architectures import decoder
        >>> config = decoder.Config(
        ...     vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8, tied=True,
        ...     tensor_names="phi3",
        ... )
        >>> groups = by_tensors(decoder.weights(config))
        >>> [[path.split("/")[-2] for path in group] for group in groups if len(group) > 1]
        [['q', 'k', 'v'], ['gate', 'up']]
    """
    groups: dict[tuple[str, ...], dict[str, WeightMap]] = {}
    for path, weight_map in weight_maps.items():
        groups.setdefault(weight_map.names, {})[path] = weight_map
    names = [name for group in groups for name in group]
    if len(names) != len(set(names)):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice} holds parameters whose other tensors are not the same")
    for group in groups.values():
        shape_of_tensors(list(group.values()))
    return list(groups.values())


def shape_of_tensors(group: Sequence[WeightMap]) -> tuple[int, ...]:
    """The shape of each tensor of a group of `by_tensors`.

    Raises:
        ValueError: the parameters do not fill a tensor.
    """
    size = sum(math.prod(x.array_shape) for x in group)
    shapes = {tensor_shape(x.fn, x.array_shape, size) for x in group}
    shape = shapes.pop()
    arrays = [x.fn(np.broadcast_to(np.int8(0), shape)).shape for x in group]
    if shapes or math.prod(shape) != size or arrays != [x.array_shape for x in group]:
        raise ValueError(f"{group[0].names[0]} is not filled by the parameters that are read of it")
    return shape


def tensor_shape(fn: Layout, shape: tuple[int, ...], size: int) -> tuple[int, ...]:
    """The shape of the tensor of `size` numbers of which `fn` makes an array of `shape`.

    Example:
        >>> from jaxmem.architectures.weights.layer_maps import Rows
        >>> tensor_shape(Rows(0, 8), (4, 8), 4 * 24), tensor_shape(np.transpose, (4, 8), 32)
        ((24, 4), (8, 4))
    """
    if fn in (same, np.transpose):
        return shape if fn is same else shape[::-1]
    return fn.tensor_shape(shape, size)


def filled(
    shape: tuple[int, ...], layouts: Sequence[Layout], arrays: Sequence[np.ndarray]
) -> np.ndarray:
    """The tensor of a shape of which each of `layouts` makes the array at its place in `arrays`.

    Example:
        >>> from jaxmem.architectures.weights.layer_maps import Rows
        >>> layouts = Rows(0, 1, blocks=2), Rows(1, 2, blocks=2)
        >>> w = np.arange(12).reshape(6, 2)
        >>> bool((filled(w.shape, layouts, [fn(w) for fn in layouts]) == w).all())
        True
    """
    if len(layouts) == 1 and layouts[0] in (same, np.transpose):
        return layouts[0](arrays[0])  # each is its own inverse
    tensor = np.empty(shape, np.result_type(*arrays))
    for fn, array in zip(layouts, arrays):
        entries = fn(tensor)
        if np.may_share_memory(entries, tensor):
            entries[...] = array
        else:  # `fn` copies: applied to the places of a tensor's numbers, it tells whence it takes
            dtype = np.int32 if tensor.size < 2**31 else np.int64
            tensor.reshape(-1)[fn(np.arange(tensor.size, dtype=dtype).reshape(shape))] = array
    return tensor
