"""scaled: an optimizer of gradients of S · loss, with S found by doubling and halving (fp16)."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from ..core.arguments import TREE, Kind, takes

_OPTIMIZER = Kind(
    "an optax optimizer, such as optax.adam(1e-3)",
    lambda x: callable(getattr(x, "init", None)) and callable(getattr(x, "update", None)),
)
_LARGEST = 2.0**24  # a loss times more is beyond what half precision gains from


class ScaledState(NamedTuple):
    """The state of `scaled`: that of its optimizer, and three scalars."""

    inner: Any
    scale: Array  # f32: what the loss is multiplied by
    good_steps: Array  # int32: finite steps since the scale changed
    skipped: Array  # int32: steps whose gradients were not finite


class ScaledOptimizer(optax.GradientTransformation):
    """What `scaled` makes; `jm.train.released` runs its optimizer layer by layer."""

    inner: optax.GradientTransformation
    every: int
    least: float

    def after(self, state: ScaledState, inner: Any, finite: Array) -> ScaledState:
        """The state after a step whose gradients were `finite` or not; `inner` is then so, too."""
        good = jnp.where(finite, state.good_steps + 1, 0)
        grown = good >= self.every
        larger = jnp.minimum(state.scale * 2, _LARGEST)
        scale = jnp.where(
            finite,
            jnp.where(grown, larger, state.scale),
            jnp.maximum(state.scale / 2, self.least),
        )
        skipped = state.skipped + (~finite).astype(jnp.int32)
        return ScaledState(inner, scale, jnp.where(grown, 0, good), skipped)


@takes(optimizer=_OPTIMIZER)
def scaled(
    optimizer: optax.GradientTransformation,
    *,
    start: float = 2.0**15,
    every: int = 2000,
    least: float = 1.0,
) -> optax.GradientTransformation:
    """`optimizer` for gradients of `loss · scale_of(state)`, whose numbers may overflow.

    float16 has no number below 6e-8, so small gradients of a loss become 0; those of a scaled loss
    do not (Micikevicius et al., 2018). After `every` finite steps in a row the scale doubles. If a
    gradient is infinite or NaN, the scale halves, the step is counted in `state.skipped`, updates
    are 0, and each array of the optimizer's state is as it was. The scale stays between `least` and
    2^24. bfloat16 has the range of float32 and needs none of this.

    Gradients are divided by the scale inside the update, which a compiler fuses with it: no second
    tree of them is in memory. Those in float16 reach the optimizer in float32, so that none becomes
    0 again; with params in float16, `jm.optimizers.in_float32` keeps its state in float32, too.

    Raises:
        ValueError: `start` is not between `least` and 2^24, `least` is not positive, or `every` is
            less than 1.

    Example:
        >>> import optax
        >>> optimizer = scaled(optax.sgd(1.0), start=8.0)
        >>> w, state = jnp.ones(2, jnp.float16), optimizer.init(jnp.ones(2, jnp.float16))
        >>> gradient = jax.grad(lambda w: scale_of(state).astype(w.dtype) * w.sum())(w)
        >>> gradient.tolist(), optimizer.update(gradient, state, w)[0].tolist()
        ([8.0, 8.0], [-1.0, -1.0])
        >>> updates, state = optimizer.update(gradient * jnp.float16(jnp.inf), state, w)
        >>> updates.tolist(), float(scale_of(state)), int(state.skipped)
        ([0.0, 0.0], 4.0, 1)
    """
    if not 0 < least <= start <= _LARGEST:
        raise ValueError(
            f"start is {start} and least is {least}, expected 0 < least <= start <= 2^24"
        )
    if every < 1:
        raise ValueError(f"every is {every}, expected at least 1")

    def init(params: Any) -> ScaledState:
        zero = jnp.zeros((), jnp.int32)
        return ScaledState(optimizer.init(params), jnp.float32(start), zero, zero)

    def update(gradients: Any, state: ScaledState, params: Any = None) -> tuple[Any, ScaledState]:
        arrays = jax.tree.leaves(gradients)
        finite = functools.reduce(
            jnp.logical_and, [jnp.isfinite(g).all() for g in arrays], jnp.bool(True)
        )
        # zeros go through the optimizer in place of what is not finite: no NaN meets its state
        unscale = lambda g: _divided(jnp.where(finite, g, jnp.zeros((), g.dtype)), state.scale)
        updates, inner = optimizer.update(jax.tree.map(unscale, gradients), state.inner, params)
        keep = lambda new, old: jnp.where(finite, new.astype(old.dtype), old)
        updates = jax.tree.map(lambda u: jnp.where(finite, u, jnp.zeros((), u.dtype)), updates)
        inner = jax.tree.map(keep, inner, state.inner)
        return updates, made.after(state, inner, finite)

    made = ScaledOptimizer(init, update)
    made.inner, made.every, made.least = optimizer, every, least
    return made


@takes(state=TREE)
def scale_of(state: Any) -> Array:
    """The scale, f32, that the loss is multiplied by before it is differentiated.

    `state` is that of `scaled`, or one that holds it, as the states of `optax.chain` do.

    Raises:
        ValueError: no state of `scaled`, or more than one, is in it.

    Example:
        >>> import optax
        >>> float(scale_of(scaled(optax.sgd(1.0)).init(jnp.ones(2))))
        32768.0
    """
    is_scaled = lambda x: isinstance(x, ScaledState)
    found = [x for x in jax.tree.leaves(state, is_leaf=is_scaled) if is_scaled(x)]
    if len(found) != 1:
        raise ValueError(
            f"state holds {len(found)} states of jm.train.scaled, expected one: "
            "jm.train.scaled(optimizer).init(params)"
        )
    return found[0].scale


def _divided(gradient: Array, scale: Array) -> Array:
    """The gradient over the scale, in f32 for float16, which may not hold it; else in its dtype."""
    quotient = gradient.astype(jnp.float32) / scale
    return quotient if gradient.dtype == jnp.float16 else quotient.astype(gradient.dtype)
