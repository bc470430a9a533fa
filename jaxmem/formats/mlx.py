"""MLX: scale · code + bias, codes packed along the inputs of a module, as mlx-lm writes them.

`weight` (n, k · bits / 32) has words of 32 bits, `scales` and `biases` are (n, k / group_size).
The experts of a layer are one tensor of each, with the expert as the first axis, in `switch_mlp`.
config.json says bits and group_size in `quantization`, and in it those of single modules.
"""

import functools
from collections.abc import Callable

import numpy as np

from ..core.lazy import Lazy
from ..io.json_fields import JsonFields
from .quantized_matrix import FLOATS, IntegerMatrix, check_tensor, unpacked

ENDS = ("weight", "scales", "biases")
_BITS = (2, 3, 4, 5, 6, 8)
_MIXTRAL = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}


def mlx(tensors: dict[str, Lazy], config: dict) -> dict[str, IntegerMatrix]:
    """The matrices of an MLX checkpoint by the names of their modules.

    Raises:
        ValueError: a mode that is not affine, or tensors that do not belong together.
    """
    stems = [name.removesuffix(".scales") for name in tensors if name.endswith(".scales")]
    # Of a stack each expert is read by itself: the parts of one stack stay in memory for that.
    load = functools.lru_cache(maxsize=len(ENDS))(lambda name: tensors[name].load())
    result = {}
    for stem in stems:
        own = config.get(stem)
        fields = JsonFields(config | own if isinstance(own, dict) else config, "quantization.")
        bits, group = fields.integer("bits", 4), fields.integer("group_size", 64)
        fields.expect("mode", "affine")
        if bits not in _BITS:
            fields.refuse("bits", f"one of {', '.join(map(str, _BITS))}")
        stack, shape = _checked(tensors, stem, bits, group)
        if not stack:
            read = {end: tensors[f"{stem}.{end}"].load for end in ENDS}
            result[stem] = _matrix(stem, shape, bits, group, read)
            continue
        for i in range(*stack):
            part = lambda end, stem=stem, i=i: load(f"{stem}.{end}")[i]
            read = {end: functools.partial(part, end) for end in ENDS}
            result[_expert(stem, i)] = _matrix(stem, shape, bits, group, read)
    return result


def _expert(stem: str, i: int) -> str:
    """The module of one expert, as transformers names it.

    Example:
        >>> _expert("layers.0.block_sparse_moe.switch_mlp.up_proj", 2)
        'layers.0.block_sparse_moe.experts.2.w3'
        >>> _expert("layers.0.mlp.switch_mlp.up_proj", 2)
        'layers.0.mlp.experts.2.up_proj'
    """
    block, _, part = stem.rpartition(".switch_mlp.")
    if not block or part not in _MIXTRAL:
        raise ValueError(f"{stem} has three axes, and is no projection of experts in a switch_mlp")
    part = _MIXTRAL[part] if block.endswith("block_sparse_moe") else part
    return f"{block}.experts.{i}.{part}"


def _checked(
    tensors: dict[str, Lazy], stem: str, bits: int, group: int
) -> tuple[tuple[int, ...], tuple[int, int]]:
    """((experts,) or (), (n, k)) of a module; the shapes and types of its tensors are checked."""
    shape = tuple(tensors[f"{stem}.scales"].shape)
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise ValueError(f"{stem}.scales has shape {shape}, expected two axes, or three of experts")
    *stack, n, groups = shape
    if stack:
        _expert(stem, 0)  # raises if experts have no such module
    k = groups * group
    check_tensor(tensors, f"{stem}.weight", (*stack, n, k * bits // 32), "uint32")
    for end in ("scales", "biases"):
        check_tensor(tensors, f"{stem}.{end}", shape, *FLOATS)
    return tuple(stack), (n, k)


def _matrix(
    stem: str,
    shape: tuple[int, int],
    bits: int,
    group: int,
    read: dict[str, Callable[[], np.ndarray]],
) -> IntegerMatrix:
    """The matrix (n, k) of one module; `read` has what loads each of its `ENDS`."""
    codes = lambda: unpacked(read["weight"](), bits, shape[1])
    return IntegerMatrix(stem, shape, bits, group, codes, read["scales"], low=read["biases"])
