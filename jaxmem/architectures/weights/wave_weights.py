"""Which tensors of a Hugging Face checkpoint make the parameters of a WaveEmbedding."""

import dataclasses
from typing import Any

from .single_maps import single_convolution, single_norm
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
        maps |= single_convolution(f"conv_{i}", names["conv"].format(i), shape, w.bias)
        if w.norm == "layer" or i == 0:
            maps |= single_norm(f"norm_{i}", names["conv_norm"].format(i), channels)
    shape = (w.position_window, c.width // w.position_groups, c.width)
    maps |= single_convolution("positions", names["positions"], shape, True)
    maps["positions/kernel"] = dataclasses.replace(maps["positions/kernel"], normed=(0, 1))
    return {f"waves/{path}": weight_map for path, weight_map in maps.items()}
