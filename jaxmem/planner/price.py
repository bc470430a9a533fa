"""price: seconds of a step · (1 + noise / 1 %), and what a step takes by arithmetic alone."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..codecs import Int
from ..compiler.devices import Chip
from ..core.leaf import nbytes
from ..optimizers.int8_state import encoded
from ..optimizers.stochastic_rounding import stochastic_round
from ..train.remat import Remat
from .recipe import Recipe
from .step import Built

TOLERANCE = 0.01  # noise at which a step counts as twice as dear: between 8 and 4 bits
_AGAIN = {"none": 0.0, "dots_no_batch": 0.1, "named": 0.9, "full": 1.0, "nested": 2.0}
HOST = 16e9  # bytes a second between a chip and its host: PCIe 3 x16
_CERTAIN = 0.8  # the share of the formula for activations that no compiler has done without


def price(seconds: float | None, noise: float) -> float:
    """What `plan` makes least: seconds of a step, dearer by what its noise may cost in quality.

    Example:
        >>> price(2.0, 0.0), price(2.0, 0.01)
        (2.0, 4.0)
    """
    return (seconds or 0.0) * (1 + noise / TOLERANCE)


def noise(recipe: Recipe) -> float:
    """The relative squared errors of a recipe's weights, cache and optimizer state, added up."""
    total = noise_of(recipe.encoding)
    if recipe.task == "serve" and recipe.cache_bits < 16:
        total += noise_of(Int(recipe.cache_bits, group=64, symmetric=False))  # as `KVCache` holds
    if recipe.task != "serve":
        total += _state_noise(recipe.state)
    return total


@functools.cache
def noise_of(codec: Any) -> float:
    """mean (w − decode(encode(w)))² / mean w², of a normal matrix of 1,024 x 512 in f32.

    Example:
        >>> import jaxmem as jm
        >>> noise_of(None), 0 < noise_of(jm.Int(8)) < TOLERANCE < noise_of(jm.Int(4))
        (0.0, True)
    """
    if codec is None:
        return 0.0
    w = jax.random.normal(jax.random.key(0), (1024, 512), jnp.float32)
    error = w - codec.encode(w).decode()
    return float((error**2).mean() / (w**2).mean())


def arithmetic(recipe: Recipe, config: Any, build: Callable, chip: Chip, chips: int) -> tuple:
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


def device_bytes(tree: Any) -> int:
    """Bytes on one device: of an array's shard, and nothing of what lies on the host."""
    total = 0
    for x in jax.tree.leaves(tree):
        place = getattr(x, "sharding", None)
        if getattr(place, "memory_kind", None) == "pinned_host":
            continue
        shape = place.shard_shape(x.shape) if place is not None else x.shape
        total += nbytes(jax.ShapeDtypeStruct(shape, x.dtype))
    return total


def _arguments(recipe: Recipe, build: Callable[[Recipe], Built]) -> tuple:
    """The step's; recipes that differ in nothing that changes them share what was built."""
    how = {"remat": Remat("none"), "micro": 1, "chunk": recipe.seq, "prompt": 1}
    return build(dataclasses.replace(recipe, **how)).arguments


@functools.cache
def _state_noise(state: str) -> float:
    if state == "float32":
        return 0.0
    x = jax.random.normal(jax.random.key(0), (2**8, 2**8), jnp.float32)
    held = stochastic_round(x, 1) if state == "bfloat16" else encoded(x, 1).decode()
    return float(((held.astype(jnp.float32) - x) ** 2).mean() / (x**2).mean())
