"""A recipe's bytes and seconds by arithmetic, before anything is compiled."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from ..compiler.devices import Device
from ..core.leaf import device_bytes, nbytes
from ..train.remat_policy import Remat
from .recipe import Recipe
from .step import Built

_AGAIN = {"none": 0.0, "dots_no_batch": 0.1, "named": 0.9, "full": 1.0, "nested": 2.0}
HOST = 16e9  # bytes a second between a chip and its host: PCIe 3 x16
_CERTAIN = 0.8  # the share of the formula for activations that no compiler has done without


def arithmetic(recipe: Recipe, config: Any, build: Callable, chip: Device, chips: int) -> tuple:
    """(bytes on a chip that it takes at least, seconds): what a step holds, multiplies, moves.

    `build` gives what `recipes.build` does, and `config` is the Llama's.
    """
    arguments = _arguments(recipe, build)
    held = device_bytes(arguments)
    c, rows = config, recipe.batch / recipe.micro / chips
    if recipe.task == "serve":
        scores = rows * min(recipe.prompt, recipe.seq) * recipe.seq * c.heads * 4
        return held + int(_CERTAIN * scores), held / chip.bandwidth
    tokens, scores = rows * recipe.seq, rows * recipe.seq**2 * c.heads * 4
    query, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    products = query + 2 * kv + 2 * c.width + 2 * c.ffn
    weights = c.layers * c.width * (2 * query + 2 * kv + 3 * c.ffn) + c.vocab * c.width
    kept = {
        "none": c.layers * (tokens * 4 * products + 2 * scores),
        "dots_no_batch": c.layers * tokens * 4 * products,
        "named": c.layers * tokens * 2 * 2 * c.width,
        "full": c.layers * tokens * 2 * c.width,
        "nested": 2 * math.isqrt(c.layers) * tokens * 2 * c.width,
    }[recipe.remat.kind]
    work = max(2 * scores, rows * recipe.chunk * c.vocab * 4)
    slopes = device_bytes(arguments[0]["params"]) * (1 if recipe.micro == 1 else 2)
    least = held + int(_CERTAIN * (kept + work + slopes))
    passes = (3 if recipe.task == "train" else 2) + _AGAIN[recipe.remat.kind]
    flops = 2 * passes * recipe.batch * recipe.seq / chips
    flops *= weights + 2 * recipe.seq * query * c.layers
    head = 2 * c.vocab * c.width * (recipe.seq // recipe.chunk - 1)  # read again for each chunk
    moved = recipe.micro * passes * (device_bytes(arguments[:2]) + head) + 2 * held
    seconds = max(flops / chip.flops, moved / chip.bandwidth)
    trained = nbytes(arguments[0]["params"])  # shared weights are gathered there and back
    told = 2 * nbytes(arguments[1:-1]) + 3 * trained if recipe.shared else 2 * trained
    seconds += recipe.micro * told * (1 - 1 / chips) / chip.links
    if recipe.offload:
        seconds += 2 * nbytes(arguments[0]["opt"]) / HOST
    return least, seconds


def _arguments(recipe: Recipe, build: Callable[[Recipe], Built]) -> tuple:
    """The step's; recipes that differ in nothing that changes them share what was built."""
    how = {"remat": Remat("none"), "micro": 1, "chunk": recipe.seq, "prompt": 1}
    return build(dataclasses.replace(recipe, **how)).arguments
