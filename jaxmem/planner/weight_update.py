"""WeightUpdate: what a training step does with its gradient, in the form that a recipe says."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from ..offload.optimizer_state import on_host, streamed
from ..optimizers.rounded_updates import apply_rounded
from ..train.gradient_clipping import clipped, global_norm
from .recipe import Recipe
from .search_space import CODED_STATES, STATES
from .step_layout import StepLayout


@dataclasses.dataclass(frozen=True, eq=False)
class WeightUpdate:
    """The state of training {"params", "opt", "step"}, and how a gradient changes it.

    `clip` is the most that the gradient's global norm may be. With `skip_nonfinite` a step whose
    loss or gradient is not finite changes nothing but `state["skipped"]`, which counts it.
    """

    recipe: Recipe
    layout: StepLayout
    optimizer: optax.GradientTransformation  # as the user gave it
    clip: float | None = None
    skip_nonfinite: bool = False

    @property
    def in_form(self) -> optax.GradientTransformation:
        """The optimizer with its state in the recipe's form."""
        return STATES[self.recipe.state](self.optimizer)

    def start(self, params: Any) -> dict:
        """The state before the first step, of the params that are trained."""
        zero = lambda: jnp.zeros((), jnp.int32)
        counts = {"step": zero()} | ({"skipped": zero()} if self.skip_nonfinite else {})
        return {"params": params, "opt": self.in_form.init(params)} | counts

    def hosted(self, state: dict) -> dict:
        """The state; if the recipe offloads, the optimizer's part is in host memory."""
        return state | {"opt": on_host(state["opt"])} if self.recipe.offload else state

    def __call__(self, state: dict, loss: Array, gradient: Any, places: Any) -> dict:
        """The state after one step; `places` are the state's shardings, or None."""
        count = state["step"] + 1
        optimizer = self.in_form

        norm = global_norm(gradient) if self.clip or self.skip_nonfinite else None
        finite = jnp.isfinite(loss) & jnp.isfinite(norm) if self.skip_nonfinite else None
        if self.clip:
            gradient = clipped(gradient, norm, self.clip)

        def update(params, opt, gradient):
            updates, new = optimizer.update(gradient, opt, params)
            new = apply_rounded(params, updates, count), new
            if finite is None:
                return new
            return jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, (params, opt))

        # The update of a state in codes makes f32 temporaries; layer by layer they stay small.
        # The halves of a split weight are updated together, which `streamed` does not do.
        is_coded = self.recipe.state in CODED_STATES and self.recipe.weights != "split"
        by_layer = self.recipe.offload or is_coded
        change = streamed(update, far=self.recipe.offload) if by_layer else update
        with jax.named_scope("optimizer"):
            params, opt = change(state["params"], state["opt"], gradient)
        new = {"params": params, "opt": opt, "step": count}
        if finite is not None:
            new["skipped"] = state["skipped"] + 1 - finite.astype(jnp.int32)
        if places is None:
            return new
        if self.recipe.offload:  # a constraint would bring the optimizer's part to the device
            return new | {"params": self.layout.keep(new["params"], places["params"])}
        return self.layout.keep(new, places)
