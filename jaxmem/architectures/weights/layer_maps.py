"""WeightMaps of the parameters that every layer has: linears, norms, and other stacks."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .weight_map import WeightMap, same


def linear_maps(
    c: Any,
    names: dict[str, str],
    path: str,
    inputs: int,
    outputs: int,
    bias: bool,
    turn: Callable[[np.ndarray], np.ndarray] = np.transpose,
) -> dict[str, WeightMap]:
    """The kernel of a linear in every layer, and its bias.

    Args:
        c: the configuration.
        names: its modules' names in the checkpoint.
        path: of the linear in a layer.
        inputs: columns of the tensor in the checkpoint.
        outputs: rows of it that are used.
        bias: whether there is one.
        turn: makes the kernel (in, out) of a tensor (out, in), and the bias of a vector.
    """
    maps = {f"layers/{path}/kernel": stack_map(c, names, path, "weight", (inputs, outputs), turn)}
    if bias:
        of_bias = same if turn is np.transpose else turn
        maps[f"layers/{path}/bias"] = stack_map(c, names, path, "bias", (outputs,), of_bias)
    return maps


def norm_maps(
    c: Any, names: dict[str, str], path: str, shape: tuple[int, ...], bias: bool
) -> dict[str, WeightMap]:
    """The gain and bias of a norm in every layer."""
    return {
        f"layers/{path}/{part}": stack_map(c, names, path, tensor, shape)
        for part, tensor in norm_parts(c, bias)
    }


def norm_parts(c: Any, bias: bool) -> list[tuple[str, str]]:
    """(parameter, tensor) of a norm."""
    return [("scale", "weight")] * c.norm_gain + [("bias", "bias")] * bias


def stack_map(
    c: Any,
    names: dict[str, str],
    path: str,
    tensor: str,
    shape: tuple[int, ...],
    fn: Callable[[np.ndarray], np.ndarray] = same,
) -> WeightMap:
    """One parameter of every layer.

    Args:
        c: the configuration.
        names: its modules' names in the checkpoint.
        path: of the module in a layer.
        tensor: "weight" or "bias", or "" if the module's name is the tensor's.
        shape: of the parameter in one layer.
        fn: changes the layout of a tensor.
    """
    stems = (names["layer"].format(i) + names[path] for i in range(c.layers))
    return WeightMap(
        tuple(f"{stem}.{tensor}".rstrip(".") for stem in stems),
        (c.layers, *shape),
        fn,
        stacked=True,
    )


@dataclasses.dataclass(frozen=True)
class Rows:
    """Takes `count` rows of each block, from `start` on, and turns a matrix to (in, out)."""

    start: int
    count: int
    blocks: int = 1

    def __call__(self, w: np.ndarray) -> np.ndarray:
        rows = w.reshape(self.blocks, -1, *w.shape[1:])[:, self.start : self.start + self.count]
        return rows.reshape(-1, *w.shape[1:]).T

    def tensor_shape(self, shape: tuple[int, ...], size: int) -> tuple[int, ...]:
        """The shape of the tensor of `size` numbers that holds an array of `shape`."""
        return (size // math.prod(shape[:-1]), *shape[:-1])
