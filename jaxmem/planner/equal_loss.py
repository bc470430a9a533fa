"""What forms of weights and optimizer state cost in loss, as it was measured.

A Llama of 0.91 M parameters was trained on 1 M characters in each form, at its better learning rate
of two, with three seeds or more (experiments/quality/equal_loss.json).
"""

from .recipe import Recipe

# (weights, optimizer, state or "any") -> nats a token above Adam with all in float32, the mean of
# pairs of runs with the same seed
ABOVE_FLOAT32 = {
    ("bfloat16", "adamw", "int8"): 0.0034,
    ("bfloat16", "adamw", "int4"): 0.0123,
    ("split", "adamw", "float32"): 0.0100,
    ("split", "adamw", "int8"): 0.0059,
    ("bfloat16", "scale", "any"): 0.0252,
    ("int8", "scale", "any"): 0.0233,
}


def measured_cost(recipe: Recipe) -> float:
    """Nats a token that a recipe's optimizer costs; 0 if nothing was measured, or a gain.

    Example:
        >>> train = lambda **knobs: Recipe("llama-8b", "cpu", "train", 8, 2048, **knobs)
        >>> measured_cost(train()), measured_cost(train(optimizer="scale", state="bfloat16"))
        (0.0, 0.0252)
    """
    if recipe.task == "serve":
        return 0.0
    return max(0.0, *(ABOVE_FLOAT32.get(form, 0.0) for form in _forms(recipe)))


def is_measured(recipe: Recipe) -> bool:
    """Whether the loss of a recipe that trains all weights was measured; True for other tasks.

    Example:
        >>> train = lambda **knobs: Recipe("llama-8b", "cpu", "train", 8, 2048, **knobs)
        >>> is_measured(train(state="int8")), is_measured(train(state="float32"))
        (True, False)
    """
    return recipe.task != "train" or any(form in ABOVE_FLOAT32 for form in _forms(recipe))


def _forms(recipe: Recipe) -> list[tuple[str, str, str]]:
    """The keys of `ABOVE_FLOAT32` that a recipe may have."""
    in_int8 = recipe.task == "train" and recipe.encoding is not None
    weights = "int8" if in_int8 else recipe.weights
    return [(weights, recipe.optimizer, state) for state in (recipe.state, "any")]
