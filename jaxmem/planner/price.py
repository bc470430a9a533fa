"""price: seconds of a step · (1 + noise / 1 %), and the noise that a recipe's encodings add."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from ..codecs import Int
from ..optimizers.companded_codes import encode_companded
from ..optimizers.int4_state import encode_int4
from ..optimizers.stochastic_rounding import stochastic_round
from .equal_loss import measured_cost
from .recipe import Recipe

TOLERANCE = 0.01  # the noise that doubles the price of a step: between that of 8 and of 4 bits


def price(seconds: float | None, noise: float) -> float:
    """The number that `plan` minimises: seconds of a step, raised by the noise of its encodings.

    Example:
        >>> price(2.0, 0.0), price(2.0, 0.01)
        (2.0, 4.0)
    """
    return (seconds or 0.0) * (1 + noise / TOLERANCE)


def noise(recipe: Recipe) -> float:
    """The relative squared errors of a recipe's weights, cache and residuals, added up.

    To train, what the forms of optimizer and weights were measured to cost counts besides, in nats
    a token (see `equal_loss`), or the rounding error of the optimizer's state if that is larger.
    """
    total = noise_of(recipe.encoding)
    if recipe.task == "serve" and recipe.cache_bits < 16:
        total += noise_of(Int(recipe.cache_bits, group=64, symmetric=False))  # like `KVCache`
    if recipe.task != "serve":
        total += max(_state_noise(recipe.state), measured_cost(recipe))
        total += noise_of(Int(8, group=128)) if recipe.remat.held == "int8" else 0.0
    return total


@functools.cache
def noise_of(codec: Any) -> float:
    """mean (w − decode(encode(w)))² / mean w² for a normal f32 matrix w of 1,024 x 512.

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


@functools.cache
def _state_noise(state: str) -> float:
    """The same relative squared error for an optimizer's state, one of `STATES`."""
    x = jax.random.normal(jax.random.key(0), (2**8, 2**8), jnp.float32)
    rounded = {
        "float32": lambda: x,
        "bfloat16": lambda: stochastic_round(x, 1),
        "int8": lambda: encode_companded(x, 1).decode(),
        "int4": lambda: encode_int4(x, 1).decode(),
    }[state]()
    return float(((rounded.astype(jnp.float32) - x) ** 2).mean() / (x**2).mean())
