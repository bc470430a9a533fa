"""learn_rounding: codes and scales of `Int` leaves by gradient, against what the dense weights do.

ŵ = s · (clip(round(w / s) + z) − z), where w and s learn; the gradient goes straight through the
rounding (Bengio et al., 2013), and to s as in LSQ (Esser et al., 2020).
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from ..batching import tuples
from ..codecs import Int
from ..codecs.integer import IntArray
from ..codecs.scaled import divisor, spread
from ..folding import Fold
from ..leaf import Encoded, is_encoded
from ..lifting import lift
from .rounding import in_float32

T = TypeVar("T")

SLOWER = 0.05  # how much less than a weight, in steps of its grid, a scale moves relative to itself
NEARER = 0.5  # how much of its way to the dense one, within its code, a weight starts


def squared(target: Any, found: Any) -> Array:
    """Mean squared error, of the outputs joined, in f32.

    Example:
        >>> import jax.numpy as jnp
        >>> float(squared([jnp.ones(3)], [jnp.zeros(3)]))
        1.0
    """
    pairs = list(zip(jax.tree.leaves(target), jax.tree.leaves(found)))
    wide = lambda a: a.astype(jnp.float32)
    total = sum(jnp.square(wide(a) - wide(b)).sum() for a, b in pairs)
    return total / max(1, sum(a.size for a, _ in pairs))


def relative(target: Any, found: Any) -> Array:
    """Mean over rows (..., features) of ‖target − found‖² / ‖target‖², of all outputs, in f32.

    A few tokens of a language model are far larger than the others, and a norm comes next.

    Example:
        >>> import jax.numpy as jnp
        >>> float(relative(jnp.array([[3.0, 4.0], [300.0, 400.0]]), jnp.zeros((2, 2))))
        1.0
    """

    def rows(a, b):
        a, b = jnp.atleast_1d(a.astype(jnp.float32), b.astype(jnp.float32))
        size = jnp.maximum(jnp.square(a).sum(-1), jnp.finfo(jnp.float32).tiny)
        return (jnp.square(a - b).sum(-1) / size).ravel()

    pairs = zip(jax.tree.leaves(target), jax.tree.leaves(found))
    return jnp.concatenate([rows(*pair) for pair in pairs]).mean()


def divergence(target: Array, found: Array) -> Array:
    """Mean KL(softmax(target) ‖ softmax(found)) of logits (..., classes), in nats, in f32.

    Example:
        >>> import jax.numpy as jnp
        >>> float(divergence(jnp.array([[0.0, 2.0]]), jnp.array([[1.0, 3.0]])))
        0.0
    """
    target, found = (jax.nn.log_softmax(x.astype(jnp.float32)) for x in (target, found))
    return (jnp.exp(target) * (target - found)).sum(-1).mean()


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


def opened(enc: Any, params: Any) -> tuple[list[Array], Any]:
    """What learns, two arrays for each leaf of `Int`, and the tree without it."""
    wide = lambda leaf, w: LearnedArray.of(leaf, w) if isinstance(leaf, IntArray) else leaf
    tree = jax.tree.map(wide, enc, params, is_leaf=is_encoded)
    leaves = jax.tree.leaves(tree, is_leaf=is_encoded)
    moving = [a for x in leaves if isinstance(x, LearnedArray) for a in (x.at, x.grown)]
    return moving, _joined([None] * len(moving), tree)


def closed(moving: list[Array], still: Any) -> Any:
    """The tree with each leaf that learned as the leaf of `Int` that it stands for."""
    made = lambda x: x.encoded() if isinstance(x, LearnedArray) else x
    return jax.tree.map(made, _joined(moving, still), is_leaf=is_encoded)


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
    value = lambda moving: loss(target, lift(fn)(_joined(moving, still), *batch))
    now, slope = jax.value_and_grad(value)(moving)
    updates, state = _optimizer(*options).update(slope, state)
    return [m + u for m, u in zip(moving, updates)], state, now


@functools.cache
def _optimizer(learning_rate: float, steps: int) -> optax.GradientTransformation:
    schedule = optax.warmup_cosine_decay_schedule(
        0.1 * learning_rate, learning_rate, max(1, steps // 10), max(2, steps)
    )
    return in_float32(optax.adam(schedule))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LearnedArray(Encoded):
    """A leaf of `Int` on its way: weights in steps of the first scales, and the scales' change."""

    at: Array  # (*stack, n, k) f32, in steps of `start`
    grown: Array  # (*stack, n, groups) f32: scale = start · (1 + SLOWER · grown)
    start: Array  # (*stack, n, groups) f16
    zero: Array  # (*stack, n, groups) uint8
    codec: Int = dataclasses.field(metadata=dict(static=True))
    fold: Fold = dataclasses.field(metadata=dict(static=True))
    dtype: Any = dataclasses.field(metadata=dict(static=True))

    shape = property(lambda self: self.fold.shape(self.start.shape[:-2]))
    stack = property(lambda self: self.shape[: self.ndim - len(self.fold.order)])

    @classmethod
    def of(cls, leaf: IntArray, w: Array) -> "LearnedArray":
        return _of(leaf, w)

    def encoded(self) -> IntArray:
        return _encoded(self)

    def scale(self) -> Array:
        """(*stack, n, groups) f32, positive."""
        start = self.start.astype(jnp.float32)
        return start * jnp.maximum(1 + SLOWER * self.grown, 1 / 8)

    def decode(self):
        still, wide = lax.stop_gradient, lambda a: spread(a, self.codec.group, self.fold.k)
        w, scale = self.at * wide(self.start.astype(jnp.float32)), wide(self.scale())
        near = still(self.codec.snap(w, scale, wide(self.zero)))
        inside = jnp.abs(near - still(w)) <= 0.5001 * still(scale)
        by = divisor(still(scale))
        slope = near / by - jnp.where(inside, still(w) / by, 0.0)
        value = near + jnp.where(inside, w - still(w), 0.0) + (scale - still(scale)) * slope
        return self.fold.unfold(value).astype(self.dtype)

    def astype(self, dtype):
        return dataclasses.replace(self, dtype=jnp.dtype(dtype))


@jax.jit
def _of(leaf, w):
    order = [leaf.fold.full_order(w.ndim).index(a) for a in range(-w.ndim, 0)]
    k = leaf.fold.k
    matrix = w.transpose(order).reshape(*leaf.lead, leaf.fold.n, k).astype(jnp.float32)
    codec = Int(leaf.bits, group=leaf.group, symmetric=leaf.zero is None)
    start = leaf.scale.mT
    zero = jnp.full(start.shape, 2 ** (leaf.bits - 1)) if leaf.zero is None else leaf.zeros().mT
    by = spread(divisor(start), leaf.group, k)
    near = leaf.rows() / by
    at = near + NEARER * jnp.clip(matrix / by - near, -0.5, 0.5)
    grown = jnp.zeros(start.shape, jnp.float32)
    return LearnedArray(at, grown, start, zero.astype(jnp.uint8), codec, leaf.fold, leaf.dtype)


@jax.jit
def _encoded(x):
    wide = lambda a: spread(a, x.codec.group, x.fold.k)
    scale = jnp.minimum(x.scale(), float(jnp.finfo(jnp.float16).max)).astype(x.start.dtype)
    w = x.at * wide(x.start.astype(jnp.float32))
    return x.codec.round(w, scale, x.zero.astype(jnp.int32), x.fold, x.dtype)


def _joined(moving, still):
    given = iter(moving)
    new = lambda x: dataclasses.replace(x, at=next(given), grown=next(given))
    change = lambda x: new(x) if isinstance(x, LearnedArray) else x
    return jax.tree.map(change, still, is_leaf=is_encoded)
