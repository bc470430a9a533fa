"""apollo: w ← w − lr · √α · s · G, s = ‖Adam(P G)‖ / ‖P G‖, P random by a seed (Zhu et al., 2024).

The moments are those of the gradient projected to a few rows, and say only how far to go along the
gradient itself. P is made again from its seed when it is needed: it takes no memory.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import optax
from jax import Array

from ..core.arguments import POSITIVE, shown, takes
from ..core.fold import Fold
from ..core.paths import match
from .per_weight_state import AdamMoments, AdamRule, WeightState, descent, per_weight
from .weight_roles import weight_roles

DENSE = re.compile(r".*(embed|wte|wpe|head).*")  # of what takes Adam by default
GROWTH = 1.01  # an update is at most so many times as long as the last one of its matrix


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ProjectedMoments(WeightState):
    """Adam's moments of the projected gradient of a weight, as a matrix (*stack, n, k)."""

    moments: AdamMoments  # (*stack, n, rank) where k is the shorter side, else (*stack, rank, k)
    norm: Array  # of the last update of the matrix, (*stack, 1, 1)
    axes: tuple[int, ...] = dataclasses.field(metadata=dict(static=True))  # k: summed by products
    index: int = dataclasses.field(metadata=dict(static=True))  # of the weight, for its seed


@takes(rank=POSITIVE, period=POSITIVE)
def apollo(
    learning_rate: optax.ScalarOrSchedule,
    *,
    rank: int = 256,
    scaled: Literal["channel", "matrix", "back"] = "channel",
    alpha: float = 1.0,
    period: int = 200,
    dense: str | None = None,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    seed: int = 0,
    uses: Mapping | None = None,
) -> optax.GradientTransformation:
    """APOLLO: SGD whose rate for each channel, or matrix, comes from Adam on a projected gradient.

    A matrix of n x k has a state of 8 · rank · max(n, k) bytes. APOLLO-mini is
    `apollo(rate, rank=1, scaled="matrix", alpha=128)`. Embeddings, heads and vectors take Adam, as
    the authors do. A slice of the state of a stack of layers is the state of the slice: all layers
    of a stack share P.

    Args:
        learning_rate: a number or a schedule; .01 with a warm-up and a cosine is the authors'.
        rank: rows that a gradient is projected to.
        scaled: whether each channel of the longer side has a rate, or the whole matrix one. With
            "back" the update is not along the gradient: it is Adam's of the projected gradient,
            projected back by Pᵀ, as GaLore's (Zhao et al., 2024), here with a random P.
        alpha: the update is multiplied by √alpha.
        period: steps until P is drawn anew.
        dense: a regex of the paths that take Adam; None for embeddings and heads, by name.
        b1, b2, eps: as Adam's.
        seed: of all P.
        uses: what `jm.uses` returns; without it, names tell matrices from stacks of vectors.

    Raises:
        ValueError: an argument is none of the above, or `dense` matches no weight.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> params = {"up": {"kernel": jnp.ones((64, 256))}}
        >>> state = apollo(1e-2, rank=8).init(params)[0]["weights"]["up"]["kernel"]
        >>> state.moments.mu.shape, state.norm.shape
        ((256, 8), (1, 1))
    """
    if scaled not in ("channel", "matrix", "back"):
        raise ValueError(
            f"apollo: scaled is {shown(scaled)}, expected 'channel', 'matrix' or 'back'"
        )
    if not alpha > 0:
        raise ValueError(f"apollo: alpha is {alpha}, expected a number above 0")
    adam = AdamRule(b1, b2, eps)

    def init_states(params):
        def state(index, path, role):
            if not role.axes or path in whole:
                return adam.init(role)
            weight = jax.ShapeDtypeStruct(role.shape, jnp.float32)
            matrix = jax.eval_shape(lambda w: Fold.from_weight(w, role.axes)[0], weight)
            draw = lambda m: _projected(m, _projection(m, rank, jax.random.key(0)))
            low = jax.eval_shape(draw, matrix)
            norm = jnp.zeros((*matrix.shape[:-2], 1, 1), jnp.float32)
            return ProjectedMoments(adam.init(low), norm, role.axes, index)

        roles = weight_roles(params, uses)
        by_name = [path for path in roles if DENSE.fullmatch(path.lower())]
        whole = by_name if dense is None else match(list(roles), {dense: True})
        return {path: state(i, path, role) for i, (path, role) in enumerate(roles.items())}

    def update_state(state, gradient, count):
        if not isinstance(state, ProjectedMoments):
            return adam.update(state, gradient, count)
        key = jax.random.fold_in(jax.random.key(seed), state.index)
        key = jax.random.fold_in(key, (count - 1) // period)
        matrix, fold = Fold.from_weight(gradient, state.axes)
        projection = _projection(matrix, rank, key)
        low = _projected(matrix, projection)
        direction, moments = adam.update(state.moments, low, count)
        if scaled == "back":
            update = _projected_back(direction, projection, matrix)
            return math.sqrt(alpha) * fold.unfold(update), dataclasses.replace(
                state, moments=moments
            )
        # How far Adam goes along the projected gradient, for its length: so far goes the gradient.
        projected_axis = (-1,) if _projects_inputs(matrix) else (-2,)
        over = (-2, -1) if scaled == "matrix" else projected_axis
        update = matrix * (_length(direction, over) / (_length(low, over) + eps))
        # An update that grows suddenly is shortened, as in Fira (Chen et al., 2024).
        norm = _length(update, (-2, -1))
        growth = jnp.where(state.norm > 0, norm / (state.norm + eps), 1.0)
        shrink = GROWTH / jnp.maximum(growth, GROWTH)
        state = dataclasses.replace(state, moments=moments, norm=norm * shrink)
        return math.sqrt(alpha) * fold.unfold(update * shrink), state

    return optax.chain(per_weight(init_states, update_state), descent(learning_rate))


def _projects_inputs(matrix: Array) -> bool:
    """Whether k, the inputs of a matrix (*stack, n, k), is the shorter side, which is projected."""
    return matrix.shape[-1] <= matrix.shape[-2]


def _projection(matrix: Array, rank: int, key: Array) -> Array:
    """P (shorter side, rank) of a matrix (*stack, n, k), of N(0, 1/rank): P Pᵀ is 1 on average."""
    short = min(matrix.shape[-2:])
    rank = min(rank, short)
    return jax.random.normal(key, (short, rank), jnp.float32) / math.sqrt(rank)


def _projected(matrix: Array, projection: Array) -> Array:
    """The matrix (*stack, n, k) with its shorter side projected."""
    if _projects_inputs(matrix):
        return matrix @ projection
    return jnp.einsum("...nk,nr->...rk", matrix, projection)


def _projected_back(low: Array, projection: Array, matrix: Array) -> Array:
    """A projected array in the shape of the matrix."""
    if _projects_inputs(matrix):
        return low @ projection.T
    return jnp.einsum("...rk,nr->...nk", low, projection)


def _length(x: Array, axes: tuple[int, ...]) -> Array:
    """The Euclidean norm over some axes, which stay with a size of 1."""
    return jnp.sqrt(jnp.sum(x**2, axes, keepdims=True))
