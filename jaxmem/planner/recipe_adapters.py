"""The pairs of a recipe of the task "lora": those of the first step, and as they are attached."""

from typing import Any

import jax

from ..adapters.alpha import with_alpha
from ..adapters.dora import with_magnitudes
from ..adapters.lora import adapters
from .recipe import Recipe

_PAIRS = r"layers(_\d+)?/.*kernel"  # paths of the weights that have a pair


def first_pairs(recipe: Recipe, key: jax.Array, params: Any) -> dict[str, dict]:
    """The pairs before the first step."""
    pairs = adapters(key, params, recipe.rank, _PAIRS)
    return with_magnitudes(params, pairs) if recipe.adapter == "dora" else pairs


def scaled_pairs(recipe: Recipe, pairs: dict[str, dict]) -> dict[str, dict]:
    """The pairs as `attach` takes them: those of rsLoRA times √rank, as if alpha were the rank."""
    return with_alpha(pairs, recipe.rank, root=True) if recipe.adapter == "rslora" else pairs
