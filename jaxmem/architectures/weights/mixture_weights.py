"""Which tensors of a Hugging Face checkpoint make the parameters of a mixture of experts."""

import dataclasses
import math
from typing import Any

import numpy as np

from .gguf_names import GGUF_NAMES
from .inverse_maps import tensor_shape
from .layer_maps import linear_maps, stack_map
from .weight_map import WeightMap, same


def mixture_maps(c: Any, names: dict[str, str]) -> dict[str, WeightMap]:
    """The router, the experts and the shared expert, as parameters of every layer."""
    m = c.mixture
    sizes = {"gate": (c.width, m.ffn), "up": (c.width, m.ffn), "down": (m.ffn, c.width)}
    maps = linear_maps(c, names, "mlp/router", c.width, m.experts, m.router_bias)
    if m.correction:
        maps["layers/mlp/correction"] = stack_map(c, names, "mlp/correction", "", (m.experts,))
    for part, size in sizes.items():
        path = f"mlp/experts/{part}"
        of_experts = _from_one_tensor if "{}" not in names[path] else _from_many_tensors
        maps |= of_experts(c, names, path, size)
    if m.shared_ffn:
        for part in sizes:
            shape = (m.shared_ffn, c.width) if part == "down" else (c.width, m.shared_ffn)
            maps |= linear_maps(c, names, f"mlp/shared/{part}", *shape, c.mlp_bias)
    if m.shared_gate:
        turn = _column if c.tensor_names in GGUF_NAMES else np.transpose
        maps |= linear_maps(c, names, "mlp/shared_gate", c.width, 1, False, turn)
    return maps


def _from_many_tensors(
    c: Any, names: dict[str, str], path: str, size: tuple[int, int]
) -> dict[str, WeightMap]:
    """The kernels of experts that have a tensor each; "{}" in its name is the expert."""
    count = c.mixture.experts
    stems = [names["layer"].format(i) + names[path] for i in range(c.layers)]
    tensors = tuple(f"{stem.format(e)}.weight" for stem in stems for e in range(count))
    shape = (c.layers, count, *size)
    stack = WeightMap(tensors, shape, np.transpose, stacked=True, parts=count)
    return {f"layers/{path}/kernel": stack}


def _from_one_tensor(
    c: Any, names: dict[str, str], path: str, size: tuple[int, int]
) -> dict[str, WeightMap]:
    """The kernels of experts in one tensor, which may hold gate and up, and their biases."""
    m, part = c.mixture, path.rpartition("/")[2]
    layout = FUSED_EXPERTS[c.tensor_names]
    is_whole = part == "down" or layout.separate
    take = same if is_whole else _Half(part == "up", m.ffn, layout.alternating)
    kernel = _Kernels(take, layout.transposed)
    shape = (m.experts, *size)
    maps = {f"layers/{path}/kernel": stack_map(c, names, path, layout.tensor, shape, kernel)}
    if m.expert_bias:
        biases = names | {path: f"{names[path]}{layout.bias}"}
        shape = (m.experts, size[1])
        maps[f"layers/{path}/bias"] = stack_map(c, biases, path, "", shape, take)
    return maps


def _column(w: np.ndarray) -> np.ndarray:
    """A tensor (1, in), or the vector of it, as a kernel (in, 1)."""
    return w.reshape(-1, 1)


@dataclasses.dataclass(frozen=True)
class _Layout:
    """How one tensor holds all experts."""

    transposed: bool = (
        False  # it is (experts, out, in), as a PyTorch Linear, not (experts, in, out)
    )
    alternating: bool = False  # gate and up are every other output, not the two halves
    tensor: str = ""  # the end of its name
    bias: str = "_bias"  # the end of the name of its biases
    separate: bool = False  # gate and up have a tensor each


FUSED_EXPERTS = {
    "granitemoe": _Layout(transposed=True, tensor="weight"),
    "gpt_oss": _Layout(alternating=True),
    "llama4_text": _Layout(),
    **dict.fromkeys(
        GGUF_NAMES, _Layout(transposed=True, tensor="weight", bias=".bias", separate=True)
    ),
}  # by Config.tensor_names


@dataclasses.dataclass(frozen=True)
class _Half:
    """Takes gate or up from the last axis of a tensor that holds both."""

    is_up: bool
    size: int
    alternating: bool

    def __call__(self, w: np.ndarray) -> np.ndarray:
        start = int(self.is_up)
        if self.alternating:
            return w[..., start::2]
        return w[..., start * self.size : (start + 1) * self.size]

    def tensor_shape(self, shape: tuple[int, ...], size: int) -> tuple[int, ...]:
        """The shape of the tensor of `size` numbers that holds an array of `shape`."""
        return (*shape[:-1], size // math.prod(shape[:-1]))


@dataclasses.dataclass(frozen=True)
class _Kernels:
    """The kernels (experts, in, out) of a tensor."""

    take: Any
    transposed: bool

    def __call__(self, w: np.ndarray) -> np.ndarray:
        return self.take(w.swapaxes(-1, -2) if self.transposed else w)

    def tensor_shape(self, shape: tuple[int, ...], size: int) -> tuple[int, ...]:
        """The shape of the tensor of `size` numbers that holds an array of `shape`."""
        *stack, rows, columns = tensor_shape(self.take, shape, size)
        return (*stack, columns, rows) if self.transposed else (*stack, rows, columns)
