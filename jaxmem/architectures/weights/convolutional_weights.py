"""Which tensors of a Hugging Face checkpoint make each parameter of a convolutional network."""

from typing import Any

import numpy as np

from ..configs.convolutional_config import WINDOW
from .tensor_layouts import ConvolutionKernel
from .weight_map import WeightMap, same

_NORM = {"scale": "weight", "bias": "bias"}
_BATCH_NORM = _NORM | {"mean": "running_mean", "var": "running_var"}


def weights(config: Any) -> dict[str, WeightMap]:
    """The tensors of a Hugging Face checkpoint that each parameter is read from.

    Example:
        >>> from jaxmem.architectures import convolutional
        >>> config = convolutional.Config((8, 16), (1, 2), stem=8, block="basic")
        >>> convolutional.weights(config)["stage_1/conv_0/kernel"].names
        ('encoder.stages.1.layers.1.layer.0.convolution.weight',)
    """
    c = config
    maps = _depthwise(c) if c.block == "depthwise" else _residual(c)
    if not c.labels:
        return maps
    base = "convnext." if c.block == "depthwise" else "resnet."  # before all but the classifier
    return {path: x if path.startswith("head/") else x.after(base) for path, x in maps.items()}


def _residual(c: Any) -> dict[str, WeightMap]:
    """The parameters of a ResNet."""
    stem, channels = "embedder.embedder.", (c.channels, c.stem)
    maps = _convolution("stem/conv", [f"{stem}convolution"], WINDOW, *channels)
    maps |= _vectors("stem/norm", [f"{stem}normalization"], _BATCH_NORM, c.stem)
    for i, stage in enumerate(c.stages):
        layers = [f"encoder.stages.{i}.layers.{j}." for j in range(stage.depth)]
        first = f"stage_{i}_first"
        maps |= _block(c, first, layers[:1], stage.inputs, stage.width, False)
        if stage.depth > 1:
            maps |= _block(c, f"stage_{i}", layers[1:], stage.width, stage.width, True)
        if stage.inputs != stage.width or stage.stride != 1:
            around = f"{layers[0]}shortcut."
            sizes = (1, stage.inputs, stage.width)
            maps |= _convolution(f"{first}/around", [f"{around}convolution"], *sizes)
            name = f"{around}normalization"
            maps |= _vectors(f"{first}/around_norm", [name], _BATCH_NORM, stage.width)
    return maps | (_linear("head", ["classifier.1"], c.widths[-1], c.labels) if c.labels else {})


def _block(
    c: Any, path: str, layers: list[str], inputs: int, width: int, stacked: bool
) -> dict[str, WeightMap]:
    """The convolutions and norms of residual blocks; `layers` are their names in the checkpoint."""
    maps: dict[str, WeightMap] = {}
    for k, (features, side, _) in enumerate(c.convolutions(width, 1)):
        stems = [f"{layer}layer.{k}." for layer in layers]
        convolutions = [f"{stem}convolution" for stem in stems]
        maps |= _convolution(f"{path}/conv_{k}", convolutions, side, inputs, features, stacked)
        norms = [f"{stem}normalization" for stem in stems]
        maps |= _vectors(f"{path}/norm_{k}", norms, _BATCH_NORM, features, stacked)
        inputs = features
    return maps


def _depthwise(c: Any) -> dict[str, WeightMap]:
    """The parameters of a ConvNeXt."""
    stem = ["embeddings.patch_embeddings"]
    maps = _convolution("stem/conv", stem, c.patch, c.channels, c.stem)
    maps |= _vectors("stem/conv", stem, {"bias": "bias"}, c.stem)
    maps |= _vectors("stem/norm", ["embeddings.layernorm"], _NORM, c.stem)
    for i, (inputs, width, depth, _) in enumerate(c.stages):
        path, stage = f"stage_{i}", f"encoder.stages.{i}."
        if i:
            norm, down = ([f"{stage}downsampling_layer.{k}"] for k in (0, 1))
            maps |= _vectors(f"{path}_norm", norm, _NORM, inputs)
            maps |= _convolution(f"{path}_down", down, 2, inputs, width)
            maps |= _vectors(f"{path}_down", down, {"bias": "bias"}, width)
        layers = [f"{stage}layers.{j}." for j in range(depth)]
        named = lambda name: [f"{layer}{name}" for layer in layers]  # noqa: B023
        maps |= _convolution(f"{path}/depthwise", named("dwconv"), WINDOW, 1, width, True)
        maps |= _vectors(f"{path}/depthwise", named("dwconv"), {"bias": "bias"}, width, True)
        maps |= _vectors(f"{path}/norm", named("layernorm"), _NORM, width, True)
        maps |= _linear(f"{path}/up", named("pwconv1"), width, 4 * width, True)
        maps |= _linear(f"{path}/down", named("pwconv2"), 4 * width, width, True)
        if c.layer_scale:
            names = tuple(named("layer_scale_parameter"))
            maps[f"{path}/layer_scale"] = WeightMap(names, (depth, width), stacked=True)
    if not c.labels:
        return maps
    maps |= _vectors("head_norm", ["layernorm"], _NORM, c.widths[-1])
    return maps | _linear("head", ["classifier"], c.widths[-1], c.labels)


def _convolution(
    path: str, names: list[str], side: int, inputs: int, features: int, stacked: bool = False
) -> dict[str, WeightMap]:
    """The kernel (*stack, side, side, inputs, features) of convolutions."""
    shape = (side, side, inputs, features)
    return {f"{path}/kernel": _weight(names, "weight", shape, ConvolutionKernel(), stacked)}


def _linear(
    path: str, names: list[str], inputs: int, outputs: int, stacked: bool = False
) -> dict[str, WeightMap]:
    """The kernel (*stack, inputs, outputs) of linears, and their bias."""
    maps = {f"{path}/kernel": _weight(names, "weight", (inputs, outputs), np.transpose, stacked)}
    return maps | _vectors(path, names, {"bias": "bias"}, outputs, stacked)


def _vectors(
    path: str, names: list[str], parts: dict[str, str], width: int, stacked: bool = False
) -> dict[str, WeightMap]:
    """Vectors (*stack, width); `parts` is {parameter: tensor}."""
    return {
        f"{path}/{part}": _weight(names, tensor, (width,), same, stacked)
        for part, tensor in parts.items()
    }


def _weight(
    names: list[str], tensor: str, shape: tuple[int, ...], fn: Any, stacked: bool
) -> WeightMap:
    """One parameter of the modules `names`, stacked or of a single one."""
    full = (len(names), *shape) if stacked else shape
    return WeightMap(tuple(f"{name}.{tensor}" for name in names), full, fn, stacked)
