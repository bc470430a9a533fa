"""adam_mini: Adam with a second moment for each block of a weight, mean g² (Zhang et al., 2024).

A block is the weights of one output, or of one attention head.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from jax import Array

from ..core.arguments import POSITIVE, shown, takes
from ..core.paths import match
from .per_weight_state import AdamRule, WeightState, descent, per_weight
from .weight_roles import weight_roles


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BlockMoments(WeightState):
    """The moments of a matrix: the first in full, the second by block."""

    mu: Array  # f32, in the shape of the weight
    nu: Array  # f32, the weight's shape with 1 for the summed axes, and heads for the last one
    axes: tuple[int, ...] = dataclasses.field(metadata=dict(static=True))  # summed by products


@takes()
def adam_mini(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    heads: Mapping | None = None,
    uses: Mapping | None = None,
) -> optax.GradientTransformation:
    """Adam-mini: the second moment is a mean over the inputs of each output, or over a head.

    The state is little more than the first moment: 4 bytes a parameter, or 1 as
    `in_int8(adam_mini(...))`. An embedding has a second moment for each token. Vectors take Adam. A
    slice of the state of a stack of layers is the state of the slice.

    Args:
        learning_rate: a number or a schedule; that of Adam.
        b1, b2, eps: as Adam's.
        heads: {regex of the paths of query and key matrices: number of heads}. Their last axis is
            divided into so many blocks; the paper does so, as outputs of a head are alike.
        uses: what `jm.uses` returns; without it, names tell matrices from stacks of vectors.

    Raises:
        TypeError: a number of heads is no int of at least 1.
        ValueError: a regex matches no weight, or the number of heads does not divide the last axis
            of its weight, or that axis is summed over.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> params = {"q": {"kernel": jnp.ones((64, 64))}, "up": {"kernel": jnp.ones((64, 256))}}
        >>> weights = adam_mini(1e-3, heads={"q/kernel": 8}).init(params)[0]["weights"]
        >>> [weights[name]["kernel"].nu.shape for name in ("q", "up")]
        [(1, 8), (1, 256)]
    """
    adam = AdamRule(b1, b2, eps)

    for path, count in (heads or {}).items():
        if not POSITIVE.accepts(count):
            raise TypeError(
                f"adam_mini: heads of {path!r} is {shown(count)}, expected {POSITIVE.expected}"
            )

    def init_states(params):
        roles = weight_roles(params, uses)
        counts = match(list(roles), dict(heads)) if heads else {}

        def state(path, role):
            if not role.axes:
                return adam.init(role)
            shape = [1 if i - len(role.shape) in role.axes else n for i, n in enumerate(role.shape)]
            if path in counts:
                if -1 in role.axes or shape[-1] % counts[path]:
                    raise ValueError(
                        f"adam_mini: {path} of shape {role.shape} has {counts[path]} heads, "
                        "expected a divisor of its last axis, which products do not sum over"
                    )
                shape[-1] = counts[path]
            zeros = lambda shape: jnp.zeros(shape, jnp.float32)
            return BlockMoments(zeros(role.shape), zeros(shape), role.axes)

        return {path: state(path, role) for path, role in roles.items()}

    def update_state(state, gradient, count):
        if not isinstance(state, BlockMoments):
            return adam.update(state, gradient, count)
        mu = b1 * state.mu + (1 - b1) * gradient
        square = jnp.mean(gradient**2, state.axes, keepdims=True)
        blocks = state.nu.shape[-1]  # 1 where the last axis is summed, or one a head or output
        wide = square.shape[-1] // blocks
        square = square.reshape(*square.shape[:-1], blocks, wide).mean(-1)
        nu = b2 * state.nu + (1 - b2) * square
        direction = adam.direction(mu, jnp.repeat(nu, wide, -1), count)
        return direction, dataclasses.replace(state, mu=mu, nu=nu)

    return optax.chain(per_weight(init_states, update_state), descent(learning_rate))
