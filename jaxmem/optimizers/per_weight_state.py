"""per_weight: an optax transformation that treats each weight by itself, by the kind of its state.

Adam's moments of one weight are here too: the optimizers of few states keep them for vectors.
"""

import dataclasses
from collections.abc import Callable
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from ..core.arguments import shown
from ..core.leaf import is_encoded
from ..core.paths import paths
from .float32_state import is_trained_whole, to_float32


class WeightState:
    """The state of one weight; a subclass is a frozen dataclass registered as a pytree.

    All its arrays have the leading axes of the weight that count layers, and no static field names
    these axes: so a slice of the state of a stack is the state of the slice.
    """


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AdamMoments(WeightState):
    """Adam's first and second moment of a weight, in f32."""

    mu: Array
    nu: Array


@dataclasses.dataclass(frozen=True)
class AdamRule:
    """The step of Adam (Kingma & Ba, 2015) for one weight."""

    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self):
        for name, value in (("b1", self.b1), ("b2", self.b2)):
            if not 0 <= value < 1:
                raise ValueError(f"Adam's {name} is {value}, expected a number in [0, 1)")
        if not self.eps >= 0:
            raise ValueError(f"Adam's eps is {self.eps}, expected a number of at least 0")

    def init(self, w: Any) -> AdamMoments:
        """The moments before the first step."""
        return AdamMoments(jnp.zeros(w.shape, jnp.float32), jnp.zeros(w.shape, jnp.float32))

    def update(self, state: AdamMoments, gradient: Array, count: Array) -> tuple[Array, Any]:
        """(the direction, the moments after step `count`, which is counted from 1)."""
        mu = self.b1 * state.mu + (1 - self.b1) * gradient
        nu = self.b2 * state.nu + (1 - self.b2) * gradient**2
        return self.direction(mu, nu, count), AdamMoments(mu, nu)

    def direction(self, mu: Array, nu: Array, count: Array) -> Array:
        """mu / (√nu + eps), both without the bias towards 0; `nu` broadcasts."""
        count = count.astype(jnp.float32)
        unbiased = nu / (1 - self.b2**count)
        return mu / (1 - self.b1**count) / (jnp.sqrt(unbiased) + self.eps)


def descent(rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """The directions times minus the learning rate, a number of at least 0 or a schedule.

    Raises:
        ValueError: the number is below 0 or NaN, or no number.

    Example:
        >>> descent(-1.0)
        Traceback (most recent call last):
        ValueError: learning_rate is -1.0, expected a number of at least 0 or a schedule
    """
    is_number = isinstance(rate, Real) or not getattr(rate, "shape", (1,))
    if not callable(rate) and (not is_number or (isinstance(rate, Real) and not rate >= 0)):
        raise ValueError(
            f"learning_rate is {shown(rate)}, expected a number of at least 0 or a schedule"
        )
    return optax.scale_by_learning_rate(rate)


def per_weight(
    init_states: Callable[[Any], dict[str, WeightState]],
    update_state: Callable[[WeightState, Array, Array], tuple[Array, WeightState]],
) -> optax.GradientTransformation:
    """The transformation whose state is {"count", "weights": a tree of `WeightState`}.

    Args:
        init_states: from the params to {path: the state of the weight}.
        update_state: from a weight's state, its gradient in f32 and the number of the step, from 1,
            to (the direction in f32, to be multiplied by minus the learning rate; the next state).

    A gradient of None stays None, and so does its weight's state.
    """

    def init(params):
        leaves, tree = jax.tree.flatten(params, is_leaf=is_encoded)
        for path, x in zip(paths(params), leaves):
            if is_encoded(x) and not is_trained_whole(x):
                raise TypeError(
                    f"{path} is a {type(x).__name__}, expected an array, Split or Int(8): this "
                    "optimizer treats a weight as a whole"
                )
        states = init_states(params)
        weights = tree.unflatten([states[path] for path in paths(params)])
        return {"count": jnp.zeros((), jnp.int32), "weights": weights}

    def update(grads, state, params=None):
        count = state["count"] + 1
        leaves, tree = jax.tree.flatten(grads, is_leaf=lambda x: x is None)
        states = tree.flatten_up_to(state["weights"])
        one = lambda g, s: (None, s) if g is None else update_state(s, to_float32(g), count)
        pairs = [one(g, s) for g, s in zip(leaves, states)]
        directions, weights = (tree.unflatten(part) for part in zip(*pairs))
        return directions, {"count": count, "weights": weights}

    return optax.GradientTransformation(init, update)
