"""learn_rounding: codes and scales of `Int` by gradient, against what the dense weights do."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax import Array

from ..calibration.batches import tuples
from ..core.lifting import lift
from ..optimizers.float32_state import in_float32
from .learnable_int import closed, joined, opened
from .losses import squared

T = TypeVar("T")


def learn_rounding(
    fn: Callable,
    params: Any,
    enc: T,
    batches: Iterable[tuple],
    *,
    targets: Iterable[Any] | None = None,
    loss: Callable[[Any, Any], Array] = squared,
    learning_rate: float = 0.02,
    progress: Callable[[int, float], None] | None = None,
) -> T:
    """`enc` with the codes and scales of its `Int` leaves trained, one step of Adam a batch.

    Those inside the leaves of `Dynamic`, `Smooth` and `Sum` (so of `QERA`) learn too, and in a
    stack whose layers differ those that are there.

    `fn(params, *batch)` is what to come near to, by `loss(target, found)`: a block of a model by
    `squared`, a language model's logits by `divergence`. `targets`, one a batch, stand for what the
    dense `params` answer. A weight starts half way from the code that it has to the dense one, or
    to the edge of the code if that is nearer, so start from GPTQ: what that rounded away from the
    nearest code wants as much to go back as others to leave. `learning_rate` is in steps of the
    grid; it rises over the first tenth and falls to zero as half a cosine, and what all steps reach
    together should be half a step of the grid or more. Other leaves, and zero points, stay. The
    bytes are the same. `progress(step, loss)` is called after each step.

    Takes 16 bytes for each weight that learns, beside the dense weights and a batch's activations.
    Cheng et al., 2023 (AutoRound); Chen et al., 2024 (EfficientQAT, its first phase).

    Raises:
        ValueError: no batch, no `Int` leaf, or a loss that is not finite.

    Example:
        >>> import jax, jaxmem as jm
        >>> draw = lambda i, *shape: jax.random.normal(jax.random.key(i), shape)
        >>> batches = [(draw(i, 64, 8) @ draw(0, 8, 32),) for i in range(1, 100)]
        >>> fn, params = lambda params, x: x @ params["w"], {"w": draw(0, 32, 16)}
        >>> enc, losses = jm.encode(params, {"w": jm.Int(2)}), []
        >>> tell = lambda step, loss: losses.append(loss)
        >>> learned = learn_rounding(fn, params, enc, batches, progress=tell)
        >>> losses[-1] < 0.5 * losses[0], jm.nbytes(learned) == jm.nbytes(enc)
        (True, True)
    """
    batches = list(tuples(batches, "learn_rounding"))
    targets = [None] * len(batches) if targets is None else list(targets)
    moving, still = opened(enc, params)
    if not moving:
        raise ValueError("no leaf of Int to learn")
    how = (fn, loss, learning_rate, len(batches))
    state = started(how, moving)
    for i, (batch, target) in enumerate(zip(batches, targets, strict=True)):
        moving, state, value = step(how, moving, state, still, params, batch, target)
        if not jnp.isfinite(value):
            raise ValueError(f"the loss of step {i} is {float(value)}, expected a finite number")
        if progress:
            progress(i + 1, float(value))
    return closed(moving, still)


def started(how: tuple, moving: list[Array]) -> Any:
    """The optimizer's state."""
    return _optimizer(*how[2:]).init(moving)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def step(
    how: tuple,
    moving: list[Array],
    state: Any,
    still: Any,
    params: Any,
    batch: tuple,
    target: Any = None,
) -> tuple[list[Array], Any, Array]:
    """(what learns, state, loss) after a batch; how = (fn, loss, learning rate, steps)."""
    fn, loss, *options = how
    target = fn(params, *batch) if target is None else target
    value = lambda moving: loss(target, lift(fn)(joined(moving, still), *batch))
    now, slope = jax.value_and_grad(value)(moving)
    updates, state = _optimizer(*options).update(slope, state)
    return [m + u for m, u in zip(moving, updates)], state, now


@functools.cache
def _optimizer(learning_rate: float, steps: int) -> optax.GradientTransformation:
    schedule = optax.warmup_cosine_decay_schedule(
        0.1 * learning_rate, learning_rate, max(1, steps // 10), max(2, steps)
    )
    return in_float32(optax.adam(schedule))
