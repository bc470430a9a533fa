"""The pairs of a recipe of the task "lora": the first ones, how they are trained, and the last."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ..adapters.alpha import with_alpha
from ..adapters.dora import with_magnitudes
from ..adapters.lora import adapters
from ..adapters.singular_triples import orthogonality, shrink, triples
from ..adapters.triple_importance import adaptive_rank
from .recipe import Recipe
from .search_space import CODED_STATES

_PAIRS = r"layers(_\d+)?/.*kernel"  # paths of the weights that have a pair
_APART = 0.1  # of the orthogonality of triples, in the loss


def first_pairs(recipe: Recipe, key: jax.Array, params: Any) -> dict[str, dict]:
    """The pairs before the first step."""
    if recipe.adapter == "adalora":
        _check_whole(recipe)
        return triples(key, params, -(-3 * recipe.rank // 2), _PAIRS)
    pairs = adapters(key, params, recipe.rank, _PAIRS)
    return with_magnitudes(params, pairs) if recipe.adapter == "dora" else pairs


def scaled_pairs(recipe: Recipe, pairs: dict[str, dict]) -> dict[str, dict]:
    """The pairs as `attach` takes them in a step.

    Those of rsLoRA are times √rank, as if alpha were the rank, and v of LoRA-FA has no gradient.
    """
    if recipe.adapter == "lora-fa":
        stopped = lambda pair: pair | {"v": jax.lax.stop_gradient(pair["v"])}
        return {path: stopped(pair) for path, pair in pairs.items()}
    return with_alpha(pairs, recipe.rank, root=True) if recipe.adapter == "rslora" else pairs


def with_penalty(recipe: Recipe, pairs: dict[str, dict], gradient: Any) -> Any:
    """The gradient, and that of the penalty which keeps triples apart; no loss includes it."""
    if recipe.adapter != "adalora":
        return gradient
    apart = jax.grad(lambda pairs: _APART * orthogonality(pairs))(pairs)
    return jax.tree.map(jnp.add, gradient, apart)


def adapter_optimizer(
    recipe: Recipe, optimizer: optax.GradientTransformation, steps: int
) -> optax.GradientTransformation:
    """The optimizer for the pairs of a run of `steps` steps.

    That of LoRA-FA has no state of v. That of AdaLoRA drops triples from a tenth of the steps on,
    until two thirds of them.
    """
    if recipe.adapter == "lora-fa":
        of_u = lambda pairs: {path: {"u": True, "v": False} for path in pairs}
        return optax.masked(optimizer, of_u)
    if recipe.adapter == "adalora":
        begin, end = steps // 10, max(1, 2 * steps // 3)
        return adaptive_rank(
            optimizer, recipe.rank, begin=begin, end=end, every=max(1, steps // 50)
        )
    return optimizer


def _check_whole(recipe: Recipe) -> None:
    """Refuses states that are updated in parts: triples of all weights are ranked together.

    Raises:
        ValueError: the state is in codes, in host memory or on a mesh.
    """
    if recipe.offload or recipe.state in CODED_STATES or math.prod(recipe.axes.values()) > 1:
        raise ValueError(
            f"adapter is 'adalora' with state {recipe.state!r}, offload {recipe.offload} and mesh "
            f"{recipe.axes}, expected float32 or bfloat16 on one device"
        )


def last_pairs(recipe: Recipe, pairs: dict[str, dict]) -> dict[str, dict]:
    """The pairs after the last step, without triples that were dropped."""
    return shrink(pairs) if recipe.adapter == "adalora" else scaled_pairs(recipe, pairs)
