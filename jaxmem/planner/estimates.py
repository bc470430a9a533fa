"""A recipe's bytes and seconds by arithmetic, before anything is compiled."""

import dataclasses
from collections.abc import Callable
from typing import Any

from ..compiler.devices import Device
from ..core.byte_counts import device_bytes, nbytes
from ..train.remat_policy import Remat
from .product_counts import (
    attended_numbers,
    attention_share,
    product_numbers,
    split_experts,
    token_weights,
)
from .recipe import Recipe
from .search_space import HELD, REMATS
from .step_losses import SCORES, TILE
from .train_and_serve_steps import Built

HOST = 16e9  # bytes a second between a chip and its host: PCIe 3 x16
TILED_PASSES = 0.65  # forward passes, in seconds, of a Llama of 1B (token_tiles.json)
CERTAIN_SHARE = 0.8  # of the formula for activations: no compiler has done with less


def arithmetic(
    recipe: Recipe, config: Any, build: Callable[[Recipe], Built], chip: Device
) -> tuple[int, float]:
    """(bytes on a chip that the step takes at least, seconds of a step on all chips of the mesh).

    Args:
        recipe: with a remat policy of `REMATS`.
        config: the configuration of the recipe's model, a decoder.
        build: gives what `planner.train_and_serve_steps.build` does.
        chip: memory bandwidth, flops and links of one chip.
    """
    axes = recipe.axes
    tensor, fsdp, data, expert = (axes.get(n, 1) for n in ("tensor", "fsdp", "data", "expert"))
    arguments = _arguments(recipe, build)
    argument_bytes = device_bytes(arguments)
    c, rows = config, recipe.batch / recipe.micro / (fsdp * data)
    heads = c.heads if attention_share(c) else 0
    if recipe.task == "serve":
        scores = rows * min(recipe.prompt, recipe.seq) * recipe.seq * heads * 4 / tensor
        scores = 0 if recipe.pages else scores  # of a pool there are those of a page at a time
        summed = c.layers * rows * c.width * 4  # once for attention, once for the MLP, in f32
        received = _all_reduce(2 * summed, tensor) + _all_reduce(summed, expert)
        read = argument_bytes - _unread(recipe, c, arguments[1])
        # what a layer writes back goes the other way at the same time
        passed = nbytes(arguments) - argument_bytes if recipe.host else 0
        seconds = read / chip.bandwidth + received / chip.links + passed / HOST
        return argument_bytes + int(CERTAIN_SHARE * scores), seconds
    # Activations of one layer, in bytes; heads and hidden units are divided over `tensor`. What a
    # Llama keeps was compared with compilers. Other families are counted in bfloat16: a bound.
    tokens, scores = rows * recipe.seq, rows * recipe.seq**2 * heads * 4 / tensor
    number = 4 if c.family == "llama" else 2
    products = tokens * number * (product_numbers(c) / tensor + 2 * c.width)
    layer_input = tokens * 2 * c.width
    remat = REMATS[recipe.remat.kind]
    kept = remat.kept(c.layers, layer_input, products, scores * attention_share(c))
    logits = rows * recipe.chunk * c.vocab * 4 / tensor
    gradients = _gradients(recipe, arguments[0]["params"])
    inputs = c.layers * recipe.micro * layer_input
    if recipe.release:
        kept, scores, logits, gradients = _released(recipe, c, inputs, scores, tokens)
    working = max(2 * scores, logits)
    least = argument_bytes + int(CERTAIN_SHARE * (kept + working + gradients))
    # Products, and traffic to the chip's own memory.
    params = arguments[0]["params"] if recipe.task == "train" else arguments[1]
    dense, of_experts = token_weights(c, params)
    weights = dense + c.vocab * c.width + recipe.seq * attended_numbers(c) * c.layers
    # Experts over `expert` are not divided over `tensor`, too.
    weights = weights / tensor + of_experts / (expert if expert > 1 else tensor)
    passes = (3 if recipe.task == "train" else 2) + remat.recomputed + _tiled_passes(recipe)
    flops = 2 * passes * recipe.batch * recipe.seq * weights / (fsdp * data)
    head = 2 * c.vocab * c.width * (recipe.seq // recipe.chunk - 1)  # read again for each chunk
    moved = recipe.micro * passes * (device_bytes(arguments[:2]) + head) + 2 * argument_bytes
    seconds = max(flops / chip.flops, moved / chip.bandwidth)
    # Between chips: weights and gradients over `fsdp` and `data`, activations over `tensor`.
    trained = _bytes_over(arguments[0]["params"], tensor, expert)
    if recipe.shared:  # weights are gathered for both passes, gradients are summed and divided
        frozen = _bytes_over(arguments[1], tensor, expert) if recipe.task == "lora" else 0
        received = (2 * frozen + 3 * trained) * (1 - 1 / fsdp)
        received += _all_reduce(trained / fsdp, data)
    else:
        received = _all_reduce(trained, fsdp * data)
    sums = 4 + 2 * remat.recomputed  # of a layer: two in each of the passes forward and backward
    received += _all_reduce(c.layers * sums * layer_input, tensor)
    received += _all_reduce(c.layers * sums / 2 * layer_input, expert)
    seconds += recipe.micro * received / chip.links
    on_host = nbytes(arguments[0]["opt"]) if recipe.offload else 0
    on_host += inputs if recipe.remat.held == "host" else 0
    return least, seconds + 2 * on_host / HOST


def _released(recipe: Recipe, config: Any, inputs: float, scores: float, tokens: float) -> tuple:
    """Bytes of (inputs of layers, scores, logits, gradients) of a step that releases gradients.

    The inputs are those of all micro-batches, the gradient that of the head.
    """
    copies = 1 if recipe.micro == 1 else 2
    logits = tokens * min(TILE, config.vocab) * 4
    gradients = 2 * config.vocab * config.width * copies
    return inputs * HELD[recipe.remat.held], min(scores, SCORES), logits, gradients


def _gradients(recipe: Recipe, params: Any) -> float:
    """Bytes of the gradients of params; where micro-batches add them up, they are there twice."""
    share = 2 / 3 if recipe.weights == "split" else 1  # they are those of the bfloat16 halves
    return share * device_bytes(params) * (1 if recipe.micro == 1 else 2)


def _tiled_passes(recipe: Recipe) -> float:
    """Forward passes that take as long as what tiles add: each tile reads the weights again.

    A backward pass that computes layers again in any case multiplies no more because of tiles.
    """
    return 0.0 if recipe.tile is None else TILED_PASSES


def _unread(recipe: Recipe, config: Any, params: Any) -> float:
    """Bytes on a chip of experts that a step of generation does not read."""
    mixture, axes = getattr(config, "mixture", None), recipe.axes
    if not mixture:
        return 0.0
    rows = recipe.batch / (axes.get("data", 1) * axes.get("fsdp", 1))
    chosen = rows * mixture.per_token * axes.get("expert", 1) / mixture.experts
    return device_bytes(split_experts(params)[1]) * max(1 - chosen, 0.0)


def _bytes_over(params: Any, tensor: int, expert: int) -> float:
    """Bytes of params that one device of `tensor` and `expert` works with."""
    others, experts = split_experts(params)
    return (nbytes(others) + nbytes(experts) / expert) / tensor


def _all_reduce(size: float, devices: int) -> float:
    """Bytes that a device receives when `size` bytes are summed over `devices`, by a ring."""
    return 2 * size * (1 - 1 / devices)


def _arguments(recipe: Recipe, build: Callable[[Recipe], Built]) -> tuple:
    """The step's arguments, built once for recipes whose arguments are alike."""
    policy = Remat("full" if recipe.release else "none")
    knobs = {"remat": policy, "micro": 1, "chunk": recipe.seq, "prompt": 1}
    return build(dataclasses.replace(recipe, **knobs)).arguments
