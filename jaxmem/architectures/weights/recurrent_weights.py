"""Which tensors of a Hugging Face checkpoint make the parameters of recurrent layers."""

from collections.abc import Callable
from typing import Any

import numpy as np

from ..configs.recurrence import Recurrence
from .layer_maps import Rows, linear_maps, stack_map
from .tensor_layouts import PatchKernel, Reshaped
from .weight_map import WeightMap

Maps = dict[str, WeightMap]


def mixer_maps(c: Any, names: dict[str, str]) -> Maps:
    """The parameters of the recurrence in every layer, as if every layer had one."""
    return _MAPS[c.recurrence.kind](c, names)


def _mamba(c: Any, names: dict[str, str]) -> Maps:
    """The parameters of a Mamba; one tensor holds its input and its gate."""
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
    """The parameters of a Mamba-2; one tensor holds all that a token is projected to."""
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


def _gated(c: Any, names: dict[str, str]) -> Maps:
    """The parameters of a gated linear recurrence, whose gates are of each head."""
    r = c.recurrence
    biases = {"gate": r.in_bias, "in": r.in_bias, "out": r.out_bias}
    n = r.channels // r.heads
    shapes: dict[str, tuple[int, ...]] = {"decay": (r.channels,)}
    for gate in ("keep_gate", "input_gate"):
        shapes |= {f"{gate}/kernel": (r.heads, n, n), f"{gate}/bias": (r.heads, n)}
    return _linears(c, names, biases, {}) | _convolution(c, names) | _others(c, names, shapes)


def _short_convolution(c: Any, names: dict[str, str]) -> Maps:
    """The parameters of a short convolution; one tensor holds its gates and its input."""
    r = c.recurrence
    turns = {part: Rows(i * r.channels, r.channels) for i, part in enumerate(("b", "c", "in"))}
    biases = dict.fromkeys(turns, r.in_bias) | {"out": r.out_bias}
    return _linears(c, names, biases, turns) | _convolution(c, names)


def _delta(c: Any, names: dict[str, str]) -> Maps:
    """The parameters of a gated delta rule; two tensors hold the parts of each group of heads."""
    r = c.recurrence
    values = r.channels // r.groups
    turns, start = {}, 0
    for part, rows in {"q": r.state, "k": r.state, "v": values, "gate": values}.items():
        turns[part] = Rows(start, rows, r.groups)  # of each group in one tensor
        start += rows
    for i, part in enumerate(("write", "step")):
        rows = r.heads // r.groups
        turns[part] = Rows(i * rows, rows, r.groups)
    shapes = dict.fromkeys(("log_decay", "step_bias"), (r.heads,))
    shapes |= {"norm/scale": (r.channels // r.heads,)}
    return _linears(c, names, {}, turns) | _convolution(c, names) | _others(c, names, shapes)


def _rwkv(c: Any, names: dict[str, str]) -> Maps:
    """The parameters of the part of an RWKV that mixes tokens."""
    shapes = dict.fromkeys(("log_decay", "first"), (c.recurrence.channels,))
    shares = _shares(c, names, "mixer", ("k", "v", "receptance"))
    return _linears(c, names, {}, {}) | _others(c, names, shapes) | shares


def channel_mixing_maps(c: Any, names: dict[str, str]) -> Maps:
    """The parameters of an RWKV's feed-forward part in every layer."""
    sizes = {"up": (c.width, c.ffn), "receptance": (c.width, c.width), "down": (c.ffn, c.width)}
    maps = _shares(c, names, "mlp", ("up", "receptance"))
    for part, size in sizes.items():
        maps |= linear_maps(c, names, f"mlp/{part}", *size, False)
    return maps


def _shares(c: Any, names: dict[str, str], path: str, parts: tuple[str, ...]) -> Maps:
    """How far each part reads a token and how far the one before it."""
    paths, shape = [f"{path}/{part}_mix" for part in parts], (c.width,)
    flat = Reshaped((1, 1, *shape), shape)
    return {f"layers/{p}": stack_map(c, names, p, "", shape, flat) for p in paths}


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
    path, n, turn = "mixer/conv", r.convolved(), PatchKernel((1, r.taps))
    maps = {f"layers/{path}/taps": stack_map(c, names, path, "weight", (r.taps, n), turn)}
    if r.conv_bias:
        maps[f"layers/{path}/bias"] = stack_map(c, names, path, "bias", (n,))
    return maps


def _others(c: Any, names: dict[str, str], shapes: dict[str, tuple[int, ...]]) -> Maps:
    """Parameters that are tensors as they are."""
    return {
        f"layers/mixer/{part}": stack_map(c, names, f"mixer/{part}", "", shape)
        for part, shape in shapes.items()
    }


_MAPS: dict[str, Callable[[Any, dict[str, str]], Maps]] = {
    "mamba": _mamba,
    "mamba2": _mamba2,
    "gated": _gated,
    "convolution": _short_convolution,
    "rwkv": _rwkv,
    "delta": _delta,
}
