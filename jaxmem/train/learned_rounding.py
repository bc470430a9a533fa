"""learn_rounding: codes and scales of `Int` by gradient, towards the outputs of dense weights."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax import Array

from ..calibration.batches import tuples
from ..core.arguments import AT_LEAST_0, BATCHES, TREE, shown, takes
from ..core.lifting import lift
from .cosine_adam import cosine_adam
from .learnable_int import encode_trained, merge_trainable, split_trainable
from .output_losses import squared

T = TypeVar("T")


@takes(params=TREE, enc=TREE, batches=BATCHES, learning_rate=AT_LEAST_0)
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
    """`enc` with the codes and scales of its `Int` leaves trained by Adam, one step per batch.

    `Int` leaves inside those of `Dynamic`, `Smooth` and `Sum` (hence of `QERA`), and inside stacks
    whose layers have different codecs, are trained too. All other leaves and the zero points stay;
    so do the bytes.

    A weight starts half way between its code and its dense value, or between its code and the edge
    where the next code begins, if that is nearer. Encode by GPTQ first: a weight that GPTQ rounded
    away from its nearest code then moves back to it as easily as another weight moves away.

    Takes 16 bytes for each trained weight, beside the dense weights and a batch's activations.
    Cheng et al., 2023 (AutoRound); Chen et al., 2024 (EfficientQAT, its first phase).

    Args:
        fn: `fn(params, *batch)` gives the outputs to approximate: of a block of a model (then with
            `squared`), or a language model's logits (with `divergence`).
        params: the dense params.
        enc: the same tree, encoded.
        batches: tuples of arrays.
        targets: one per batch, the outputs to approximate; None: those of the dense `params`.
        loss: `loss(target, output)`, a scalar.
        learning_rate: in steps of the grid, at its peak: it rises over the first tenth of the steps
            and falls to zero as half a cosine. Over all steps a weight should be able to move half
            a step of the grid or more.
        progress: called as `progress(step, loss)` after each step.

    Raises:
        ValueError: there is no batch or no `Int` leaf; a loss is not finite.

    Example:
        >>> import jax, jaxmem as jm
        >>> draw = lambda i, *shape: jax.random.normal(jax.random.key(i), shape)
        >>> batches = [(draw(i, 64, 8) @ draw(0, 8, 32),) for i in range(1, 100)]
        >>> fn, params = lambda params, x: x @ params["w"], {"w": draw(0, 32, 16)}
        >>> enc, losses = jm.encode(params, {"w": jm.Int(2)}), []
        >>> progress = lambda step, loss: losses.append(loss)
        >>> learned = learn_rounding(fn, params, enc, batches, progress=progress)
        >>> losses[-1] < 0.5 * losses[0], jm.nbytes(learned) == jm.nbytes(enc)
        (True, True)
    """
    batches = list(tuples(batches, "learn_rounding"))
    targets = [None] * len(batches) if targets is None else _arrays_of(targets)
    trainable, frozen = split_trainable(enc, params)
    if not trainable:
        raise ValueError("no leaf of Int to learn")
    options = Options(fn, loss, learning_rate, len(batches))
    state = init_state(options, trainable)
    for i, (batch, target) in enumerate(zip(batches, targets, strict=True)):
        trainable, state, value = train_step(
            options, trainable, state, frozen, params, batch, target
        )
        if not jnp.isfinite(value):
            raise ValueError(f"the loss of step {i} is {float(value)}, expected a finite number")
        if progress:
            progress(i + 1, float(value))
    return encode_trained(trainable, frozen)


def _arrays_of(targets: Iterable[Any]) -> list[Any]:
    """The targets as a list; TypeError if one is no output of a function."""
    targets = list(targets)
    for target in targets:
        if not TREE.accepts(target):
            raise TypeError(f"targets has {shown(target)}, expected arrays, one for each batch")
    return targets


class Options(NamedTuple):
    """What `train_step` is compiled for: see `learn_rounding`; `steps` is their number in all."""

    fn: Callable
    loss: Callable[[Any, Any], Array]
    learning_rate: float
    steps: int


def init_state(options: Options, trainable: list[Array]) -> optax.OptState:
    """The optimizer's state before the first step."""
    return cosine_adam(options.learning_rate, options.steps).init(trainable)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def train_step(
    options: Options,
    trainable: list[Array],
    state: optax.OptState,
    frozen: Any,
    params: Any,
    batch: tuple,
    target: Any = None,
) -> tuple[list[Array], optax.OptState, Array]:
    """(trainable, state, loss) after one step; the loss is the one before the step.

    Args:
        options: hashable; a new value compiles again.
        trainable: of `split_trainable`; donated.
        state: of `init_state` or the last step; donated.
        frozen: of `split_trainable`.
        params: the dense params of the function.
        batch: the arguments of the function after its params.
        target: the outputs to approximate; None: those of `params`.
    """
    fn, loss, learning_rate, steps = options
    target = fn(params, *batch) if target is None else target
    objective = lambda arrays: loss(target, lift(fn)(merge_trainable(arrays, frozen), *batch))
    value, gradient = jax.value_and_grad(objective)(trainable)
    updates, state = cosine_adam(learning_rate, steps).update(gradient, state)
    return [x + update for x, update in zip(trainable, updates)], state, value
