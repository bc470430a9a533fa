"""tune: least KL(dense ‖ encoded) over some text, by the floats inside encoded leaves alone.

Codes stay as they are, and so does every byte count: scales (and low-rank factors, codebooks, kept
values of a sparse leaf) move to make up for what rounding lost in all layers together.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax import Array

from ..calibration.batches import tuples
from ..core.leaf import Encoded, is_encoded
from ..core.lifting import lift
from ..core.segmented import Segmented
from ..optimizers.float32_state import in_float32

T = TypeVar("T")


def tune(
    fn: Callable,
    params: Any,
    enc: T,
    batches: Iterable[tuple],
    *,
    learning_rate: float = 1e-3,
    dense: Callable | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> T:
    """`enc` with its floats trained on what the dense `params` answer, one step a batch.

    `fn(params, *batch)` gives logits (..., classes); the loss is their mean KL divergence, in nats.
    Adam's steps are relative to each array's root mean square, rise over the first tenth and fall
    to zero as half a cosine. Arrays come back in the dtypes they had. Leaves that are not encoded
    stay. Where `params` are those of another model, of which `enc` is a part, `dense(params,
    *batch)` gives its logits. `progress(step, loss)` is called after each step.

    Takes the dense weights, two f32 numbers of state for each float that is trained, and the
    activations of a batch. The text should be one that nothing is measured on. Chen et al., 2024
    (EfficientQAT, its second phase); Egiazarian et al., 2024 (AQLM, tuning by distillation).

    Raises:
        ValueError: no batch, no float to train, or a loss that is not finite.

    Example:
        >>> import jax, jaxmem as jm
        >>> w = jax.random.normal(jax.random.key(0), (64, 32))
        >>> batches = [(jax.random.normal(jax.random.key(i), (64, 64)),) for i in range(1, 60)]
        >>> fn, params = lambda params, x: x @ params["w"], {"w": w / 8}
        >>> enc, losses = jm.encode(params, {"w": jm.Int(2, group=32)}), []
        >>> tuned = tune(fn, params, enc, batches, learning_rate=0.02,
        ...              progress=lambda step, loss: losses.append(loss))
        >>> losses[-1] < 0.9 * losses[0], jm.nbytes(tuned) == jm.nbytes(enc)
        (True, True)
    """
    batches = list(tuples(batches, "tune"))
    floats, rest = _apart(enc)
    if not floats:
        raise ValueError("no encoded leaf holds a float to train")
    optimizer = _optimizer(learning_rate, len(batches))
    moves = [jnp.zeros(x.shape, jnp.float32) for x in floats]
    state = optimizer.init(moves)
    for i, batch in enumerate(batches):
        held = (params, floats, rest)
        moves, state, loss = _step(
            (fn, dense or fn, learning_rate, len(batches)), moves, state, held, batch
        )
        if not jnp.isfinite(loss):
            raise ValueError(f"the loss of step {i} is {float(loss)}, expected a finite number")
        if progress:
            progress(i + 1, float(loss))
    return _joined([_moved(x, m).astype(x.dtype) for x, m in zip(floats, moves)], rest)


@functools.cache
def _optimizer(learning_rate: float, steps: int) -> optax.GradientTransformation:
    schedule = optax.warmup_cosine_decay_schedule(
        0.1 * learning_rate, learning_rate, max(1, steps // 10), max(2, steps)
    )
    return in_float32(optax.adam(schedule))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def _step(how, moves, state, held, batch):
    fn, dense, *options = how
    params, floats, rest = held
    target = jax.nn.log_softmax(dense(params, *batch).astype(jnp.float32))

    def loss(moves):
        tree = _joined([_moved(x, m) for x, m in zip(floats, moves)], rest)
        wrapped = jax.tree.map(_plain, tree, is_leaf=is_encoded)
        guess = jax.nn.log_softmax(lift(fn)(wrapped, *batch).astype(jnp.float32))
        return (jnp.exp(target) * (target - guess)).sum(-1).mean()

    value, slope = jax.value_and_grad(loss)(moves)
    updates, state = _optimizer(*options).update(slope, state)
    return [m + u for m, u in zip(moves, updates)], state, value


def _plain(x: Any) -> Any:
    if isinstance(x, Segmented):
        return Segmented(tuple(map(_plain, x.parts)))
    return Decoding(x) if is_encoded(x) else x


def _moved(x: Array, move: Array) -> Array:
    """`x` in f32, moved by so many of its layers' root mean squares."""
    x = x.astype(jnp.float32)
    return x + move * jnp.sqrt(jnp.square(x).mean((-2, -1), keepdims=True))


def _apart(tree: Any) -> tuple[list[Array], Any]:
    """(the floats inside encoded leaves, the tree without them)."""
    leaves, structure = jax.tree.flatten(tree, is_leaf=is_encoded)
    floats, rest = [], []
    for leaf in leaves:
        arrays, own = jax.tree.flatten(leaf)
        moves = [is_encoded(leaf) and jnp.issubdtype(a.dtype, jnp.floating) for a in arrays]
        floats += [a for a, m in zip(arrays, moves) if m]
        rest.append(_Rest([None if m else a for a, m in zip(arrays, moves)], own))
    return floats, _Rest(rest, structure)


def _joined(floats: list[Array], rest: Any) -> Any:
    given = iter(floats)
    whole = lambda r: r.structure.unflatten([next(given) if a is None else a for a in r.arrays])
    return rest.structure.unflatten([whole(r) for r in rest.arrays])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Rest:
    """A leaf's arrays, None where a float was taken out."""

    arrays: list
    structure: Any = dataclasses.field(metadata=dict(static=True))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Decoding(Encoded):
    """A leaf without its fast ways: each product decodes it, as fast as can be with many rows."""

    leaf: Encoded

    shape = property(lambda self: self.leaf.shape)
    dtype = property(lambda self: self.leaf.dtype)
    stack = property(lambda self: self.leaf.stack)

    def decode(self):
        return self.leaf.decode()

    def astype(self, dtype):
        return Decoding(self.leaf.astype(dtype))

    def take(self, rows):
        return self.leaf.take(rows)
