"""A recipe's bytes and seconds by arithmetic, before anything is compiled."""

import dataclasses
from collections.abc import Callable
from typing import Any

from ..compiler.devices import Device
from ..core.byte_counts import device_bytes, nbytes
from ..train.remat_policy import Remat
from .recipe import Recipe
from .search_space import REMATS
from .step import Built

HOST = 16e9  # bytes a second between a chip and its host: PCIe 3 x16
CERTAIN_SHARE = 0.8  # of the formula for activations: no compiler has done with less


def arithmetic(
    recipe: Recipe, config: Any, build: Callable[[Recipe], Built], chip: Device
) -> tuple[int, float]:
    """(bytes on a chip that the step takes at least, seconds of a step on all chips of the mesh).

    Args:
        recipe: with a remat policy of `REMATS`.
        config: the configuration of the recipe's model, a Llama.
        build: gives what `planner.step.build` does.
        chip: memory bandwidth, flops and links of one chip.
    """
    axes = recipe.axes
    tensor, fsdp, data = (axes.get(name, 1) for name in ("tensor", "fsdp", "data"))
    chips = tensor * fsdp * data
    arguments = _arguments(recipe, build)
    argument_bytes = device_bytes(arguments)
    c, rows = config, recipe.batch / recipe.micro / (fsdp * data)
    if recipe.task == "serve":
        scores = rows * min(recipe.prompt, recipe.seq) * recipe.seq * c.heads * 4 / tensor
        summed = 2 * c.layers * rows * c.width * 4  # twice a layer, over `tensor`, in f32
        seconds = argument_bytes / chip.bandwidth + _all_reduce(summed, tensor) / chip.links
        return argument_bytes + int(CERTAIN_SHARE * scores), seconds
    # Activations of one layer, in bytes; heads and hidden units are divided over `tensor`.
    tokens, scores = rows * recipe.seq, rows * recipe.seq**2 * c.heads * 4 / tensor
    query, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    products = tokens * 4 * ((query + 2 * kv + 2 * c.ffn) / tensor + 2 * c.width)
    layer_input = tokens * 2 * c.width
    remat = REMATS[recipe.remat.kind]
    kept = remat.kept(c.layers, layer_input, products, scores)
    logits = rows * recipe.chunk * c.vocab * 4 / tensor
    gradients = device_bytes(arguments[0]["params"]) * (1 if recipe.micro == 1 else 2)
    working = max(2 * scores, logits)
    least = argument_bytes + int(CERTAIN_SHARE * (kept + working + gradients))
    # Products, and traffic to the chip's own memory.
    weights = c.layers * c.width * (2 * query + 2 * kv + 3 * c.ffn) + c.vocab * c.width
    passes = (3 if recipe.task == "train" else 2) + remat.recomputed
    flops = 2 * passes * recipe.batch * recipe.seq / chips
    flops *= weights + 2 * recipe.seq * query * c.layers
    head = 2 * c.vocab * c.width * (recipe.seq // recipe.chunk - 1)  # read again for each chunk
    moved = recipe.micro * passes * (device_bytes(arguments[:2]) + head) + 2 * argument_bytes
    seconds = max(flops / chip.flops, moved / chip.bandwidth)
    # Between chips: weights and gradients over `fsdp` and `data`, activations over `tensor`.
    trained = nbytes(arguments[0]["params"]) / tensor
    if recipe.shared:  # weights are gathered for both passes, gradients are summed and divided
        frozen = nbytes(arguments[1:-1]) / tensor
        received = (2 * frozen + 3 * trained) * (1 - 1 / fsdp)
        received += _all_reduce(trained / fsdp, data)
    else:
        received = _all_reduce(trained, fsdp * data)
    sums = 4 + 2 * remat.recomputed  # of a layer: two in each of the passes forward and backward
    received += _all_reduce(c.layers * sums * layer_input, tensor)
    seconds += recipe.micro * received / chip.links
    if recipe.offload:
        seconds += 2 * nbytes(arguments[0]["opt"]) / HOST
    return least, seconds


def _all_reduce(size: float, devices: int) -> float:
    """Bytes that a device receives when `size` bytes are summed over `devices`, by a ring."""
    return 2 * size * (1 - 1 / devices)


def _arguments(recipe: Recipe, build: Callable[[Recipe], Built]) -> tuple:
    """The step's arguments, built once for recipes whose arguments are alike."""
    knobs = {"remat": Remat("none"), "micro": 1, "chunk": recipe.seq, "prompt": 1}
    return build(dataclasses.replace(recipe, **knobs)).arguments
