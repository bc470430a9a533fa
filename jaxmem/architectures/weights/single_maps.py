"""WeightMaps of modules that a model has once: linears, layer norms, convolutions."""

import numpy as np

from .tensor_layouts import ConvolutionKernel
from .weight_map import WeightMap


def single_linear(
    path: str, name: str, inputs: int, outputs: int, bias: bool = True
) -> dict[str, WeightMap]:
    """The kernel (inputs, outputs) of a linear at `path`, and its bias (outputs,).

    `name` is the module's in the checkpoint.

    Example:
        >>> single_linear("head", "lm_head", 32, 64, bias=False)["head/kernel"].names
        ('lm_head.weight',)
    """
    maps = {f"{path}/kernel": WeightMap((f"{name}.weight",), (inputs, outputs), np.transpose)}
    return maps | ({f"{path}/bias": WeightMap((f"{name}.bias",), (outputs,))} if bias else {})


def single_norm(path: str, name: str, width: int, bias: bool = True) -> dict[str, WeightMap]:
    """The scale (width,) of a layer norm at `path`, and its bias."""
    parts = {"scale": "weight"} | ({"bias": "bias"} if bias else {})
    return {f"{path}/{x}": WeightMap((f"{name}.{y}",), (width,)) for x, y in parts.items()}


def single_convolution(
    path: str, name: str, shape: tuple[int, ...], bias: bool = True
) -> dict[str, WeightMap]:
    """The kernel of a convolution at `path`, of shape (*window, in, out), and its bias (out,)."""
    maps = {f"{path}/kernel": WeightMap((f"{name}.weight",), shape, ConvolutionKernel())}
    return maps | ({f"{path}/bias": WeightMap((f"{name}.bias",), shape[-1:])} if bias else {})
