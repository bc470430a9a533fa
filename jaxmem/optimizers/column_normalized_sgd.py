"""scale_sgd: w ← w − lr · G / RMS(G over inputs), SCALE (Glentis et al., 2025)."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from jax import Array

from ..core.arguments import takes
from ..core.paths import match
from .per_weight_state import AdamRule, WeightState, descent, per_weight
from .weight_roles import head_paths, weight_roles

LEAST_RMS = 1e-8  # as in the authors' code


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Columns(WeightState):
    """The state of a matrix under column-normalized SGD: nothing, or the momentum of the head."""

    momentum: Array | None  # f32, in the shape of the weight
    axes: tuple[int, ...] = dataclasses.field(metadata=dict(static=True))  # normalized over


@takes()
def scale_sgd(
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: float = 0.9,
    head: str | None = None,
    uses: Mapping | None = None,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """SCALE: stochastic gradient descent normalized by column, with momentum for the head only.

    The gradient of a matrix is divided by its root mean square over the inputs of each output, that
    of an embedding over the tokens of each column. Vectors take Adam. The state is nothing but the
    momentum of the weight that makes the logits: .05 to .2 bytes a parameter of an LLM in bfloat16.
    A learning rate of 1e-3 with a warm-up of a tenth of the steps and a cosine is the authors'.

    The update of a slice of a stack of layers is the slice of the update. On one shard of a weight
    it is not, as a mean is taken over all inputs: under `jit`, XLA adds the shards up.

    Args:
        learning_rate: a number or a schedule.
        momentum: the decay of the head's momentum.
        head: a regex of the paths that take momentum; None for the weights named `head`, `unembed`
            or `logits`, or, if there are none, the embedding.
        uses: what `jm.uses` returns; without it, names tell matrices from stacks of vectors.
        b1, b2, eps: of Adam, which vectors take.

    Raises:
        ValueError: `momentum` is not in [0, 1), `head` matches no weight, or the shapes leave open
            what a weight of three axes or more is: pass `uses`.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> params = {"up": {"kernel": jnp.ones((64, 256))}, "head": {"kernel": jnp.ones((64, 8))}}
        >>> optimizer = scale_sgd(1e-3)
        >>> state = optimizer.init(params)
        >>> jm.nbytes(state)  # 64 x 8 numbers in f32, and a count
        2052
        >>> updates, _ = optimizer.update(params, state)
        >>> round(float(updates["up"]["kernel"][0, 0]), 6)
        -0.001
    """
    if not 0 <= momentum < 1:
        raise ValueError(f"scale_sgd: momentum is {momentum}, expected a number in [0, 1)")

    adam = AdamRule(b1, b2, eps)

    def init_states(params):
        roles = weight_roles(params, uses)
        heads = head_paths(roles) if head is None else list(match(list(roles), {head: True}))

        def state(path, role):
            if not role.axes:
                return adam.init(role)
            buffer = jnp.zeros(role.shape, jnp.float32) if path in heads else None
            # A tied embedding is a head: normalized over the inputs of each logit.
            over = (-2,) if role.is_table and (uses is not None or path not in heads) else role.axes
            return Columns(buffer, over)

        return {path: state(path, role) for path, role in roles.items()}

    def update_state(state, gradient, count):
        if not isinstance(state, Columns):
            return adam.update(state, gradient, count)
        if state.momentum is not None:
            gradient = momentum * state.momentum + (1 - momentum) * gradient
            state = dataclasses.replace(state, momentum=gradient)
        square = jnp.mean(gradient**2, state.axes, keepdims=True)
        return gradient / jnp.maximum(jnp.sqrt(square), LEAST_RMS), state

    return optax.chain(per_weight(init_states, update_state), descent(learning_rate))
