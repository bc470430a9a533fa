"""A step shortens a long gradient, and one that is not finite changes nothing."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmem.planner.recipe import Recipe
from jaxmem.planner.weight_update import WeightUpdate

RECIPE = Recipe("tiny", "cpu", "train", 1, 8)


def moved(gradient, loss=1.0, **options):
    """The state after a step of plain SGD from zero."""
    update = WeightUpdate(RECIPE, None, optax.sgd(1.0), **options)
    state = update.start({"w": jnp.zeros(2)})
    return update(state, jnp.asarray(loss), {"w": jnp.asarray(gradient)}, None)


@pytest.mark.parametrize(
    ("clip", "expected"), [(None, [-3, -4]), (1.0, [-0.6, -0.8]), (9.0, [-3, -4])]
)
def test_a_gradient_is_as_long_as_it_may_be(clip, expected):
    new = moved([3.0, 4.0], clip=clip)
    np.testing.assert_allclose(new["params"]["w"], expected, rtol=1e-6)


@pytest.mark.parametrize(("gradient", "loss"), [([np.inf, 1.0], 1.0), ([3.0, 4.0], np.nan)])
def test_what_is_not_finite_changes_nothing_and_is_counted(gradient, loss):
    new = moved(gradient, loss, clip=1.0, skip_nonfinite=True)
    assert (new["params"]["w"] == 0).all() and int(new["skipped"]) == 1 and int(new["step"]) == 1
