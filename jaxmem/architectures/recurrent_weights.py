"""Which tensors of a Hugging Face checkpoint make the parameters of recurrent layers."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .layer_maps import Rows, linear_maps, stack_map
from .recurrence import Recurrence
from .weight_map import WeightMap

Maps = dict[str, WeightMap]


def mixer_maps(c: Any, names: dict[str, str]) -> Maps:
    """The parameters of the recurrence in every layer, as if every layer had one."""
    return _MAPS[c.recurrence.kind](c, names)


def _mamba(c: Any, names: dict[str, str]) -> Maps:
    r = c.recurrence
    biases = {"in": r.in_bias, "gate": r.in_bias, "step": True, "out": r.out_bias}
    turns = {"in": Rows(0, r.channels), "gate": Rows(r.channels, r.channels)}
    maps = _linears(c, names, biases, turns) | _convolution(c, names)
    shapes = {"log_decay": (r.channels, r.state), "skip": (r.channels,)}
    if r.inner_norms:
        sizes = {"step_norm": r.step_rank, "b_norm": r.state, "c_norm": r.state}
        shapes |= {f"{name}/scale": (size,) for name, size in sizes.items()}
    return maps | _others(c, names, shapes)


def _mamba2(c: Any, names: dict[str, str]) -> Maps:
    r = c.recurrence
    sizes = r.linears(c.width)
    turns, start = {}, 0
    for part in ("gate", "in", "b", "c", "step"):  # their order in one tensor
        turns[part] = Rows(start, sizes[part][1])
        start += sizes[part][1]
    biases = dict.fromkeys(turns, r.in_bias) | {"out": r.out_bias}
    shapes = dict.fromkeys(("log_decay", "skip", "step_bias"), (r.heads,))
    if r.norm != "none":
        shapes["norm/scale"] = (r.channels,)
    maps = _linears(c, names, biases, turns) | _convolution(c, names)
    return maps | _others(c, names, shapes)


def _linears(
    c: Any, names: dict[str, str], biases: dict[str, bool], turns: dict[str, Callable]
) -> Maps:
    """The kernels and biases; `turns` says what takes a kernel from a tensor of several."""
    maps: Maps = {}
    for part, size in c.recurrence.linears(c.width).items():
        turn = turns.get(part, np.transpose)
        maps |= linear_maps(c, names, f"mixer/{part}", *size, biases.get(part, False), turn)
    return maps


def _convolution(c: Any, names: dict[str, str]) -> Maps:
    """The taps and biases of a convolution, in which each channel is a group."""
    r: Recurrence = c.recurrence
    path, n = "mixer/conv", r.convolved()
    maps = {f"layers/{path}/taps": stack_map(c, names, path, "weight", (r.taps, n), _taps)}
    if r.conv_bias:
        maps[f"layers/{path}/bias"] = stack_map(c, names, path, "bias", (n,))
    return maps


def _others(c: Any, names: dict[str, str], shapes: dict[str, tuple[int, ...]]) -> Maps:
    """Parameters that are tensors as they are."""
    return {
        f"layers/mixer/{part}": stack_map(c, names, f"mixer/{part}", "", shape)
        for part, shape in shapes.items()
    }


def _taps(w: np.ndarray) -> np.ndarray:
    """The taps (K, n) of a convolution's weights (n, 1, K)."""
    return w.reshape(w.shape[0], -1).T


_MAPS: dict[str, Callable[[Any, dict[str, str]], Maps]] = {"mamba": _mamba, "mamba2": _mamba2}
