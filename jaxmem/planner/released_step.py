"""released_step: the training step of a recipe that updates each layer as its gradient is known."""

from collections.abc import Callable
from typing import Any

from ..models import Model
from ..train.gradient_release import released, train_state
from ..train.remat_policy import Remat
from .recipe import Recipe
from .step_losses import step_loss
from .training_batch import with_predictions
from .weight_update import WeightUpdate


def released_step(
    recipe: Recipe, model: Model, update: WeightUpdate
) -> tuple[Callable, Callable, Callable]:
    """(start(params) -> state, step(state, batch) -> (state, loss), loss(params, batch)).

    `params` may be encoded. A layer is always computed again from its input, so the loss itself has
    no remat.
    """
    loss = step_loss(recipe, model, Remat("none"))
    skips = update.skip_nonfinite
    options = dict(clip=update.clip, held=recipe.remat.held, skip_nonfinite=skips)
    run = released(loss, update.in_form, micro=recipe.micro, **options)

    def start(params: Any) -> dict:
        return train_state(params, update.in_form, counts_skipped=skips)

    def step(state: dict, batch: Any) -> tuple:
        return run(state, with_predictions(batch, recipe.micro))

    return start, step, loss
