"""Which tensors of a Hugging Face checkpoint make the parameters of a WaveEmbedding."""

import dataclasses
from typing import Any

from .tensor_layouts import ConvolutionKernel
from .weight_map import WeightMap


def wave_maps(c: Any, names: dict[str, str]) -> dict[str, WeightMap]:
    """The convolutions, their norms, and the convolution of the positions.

    The linear after them, and the norm before it, are `encoder_weights.py`'s.
    """
    w = c.waves
    maps: dict[str, WeightMap] = {}
    inputs = (1, *w.channels)
    for i, (channels, window) in enumerate(zip(w.channels, w.windows)):
        shape = (window, inputs[i], channels)
        maps |= _convolution(f"conv_{i}", names["conv"].format(i), shape, w.bias)
        if w.norm == "layer" or i == 0:
            for part, tensor in {"scale": "weight", "bias": "bias"}.items():
                name = f"{names['conv_norm'].format(i)}.{tensor}"
                maps[f"norm_{i}/{part}"] = WeightMap((name,), (channels,))
    shape = (w.position_window, c.width // w.position_groups, c.width)
    maps |= _convolution("positions", names["positions"], shape, True)
    maps["positions/kernel"] = dataclasses.replace(maps["positions/kernel"], normed=(0, 1))
    return {f"waves/{path}": weight_map for path, weight_map in maps.items()}


def _convolution(path: str, name: str, shape: tuple[int, ...], bias: bool) -> dict[str, WeightMap]:
    """The kernel (*window, in, out) of a convolution, and its bias."""
    maps = {f"{path}/kernel": WeightMap((f"{name}.weight",), shape, ConvolutionKernel())}
    return maps | ({f"{path}/bias": WeightMap((f"{name}.bias",), shape[-1:])} if bias else {})
