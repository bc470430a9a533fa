"""tune: least KL(dense ‖ encoded) over a text, by training the floats inside encoded leaves.

Codes stay, and so does every byte count. Scales, low-rank factors, codebooks and the kept values of
sparse leaves move to correct what rounding lost in all layers together.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from ..calibration.batches import tuples
from ..core.arguments import AT_LEAST_0, BATCHES, TREE, takes
from ..core.leaf import Encoded, is_encoded
from ..core.lifting import lift
from ..core.segmented import Segmented
from .cosine_adam import cosine_adam
from .output_losses import divergence

T = TypeVar("T")


@takes(params=TREE, enc=TREE, batches=BATCHES, learning_rate=AT_LEAST_0)
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
    """`enc` with its floats trained towards the logits of the dense `params`, one step per batch.

    The loss is the mean KL divergence of the logits, in nats. Leaves that are not encoded stay, and
    each trained array keeps its dtype. The text should be one that no quality is measured on.

    Takes the dense weights, two f32 numbers of optimizer state for each trained float, and the
    activations of a batch. Chen et al., 2024 (EfficientQAT, its second phase); Egiazarian et al.,
    2024 (AQLM, tuning by distillation).

    Args:
        fn: `fn(params, *batch)` gives logits (..., classes).
        params: the dense params.
        enc: the same tree, encoded; or, with `dense`, another model's.
        batches: tuples of arrays.
        learning_rate: at its peak, relative to the root mean square of each matrix: it rises over
            the first tenth of the steps and falls to zero as half a cosine.
        dense: `dense(params, *batch)` gives the logits of `params` where `enc` is only a part of
            that model; None: `fn`.
        progress: called as `progress(step, loss)` after each step.

    Raises:
        ValueError: there is no batch or no float to train; a loss is not finite.

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
    floats, rest = _take_floats(enc)
    if not floats:
        raise ValueError("no encoded leaf holds a float to train")
    options = _Options(fn, dense or fn, learning_rate, len(batches))
    moves = [jnp.zeros(x.shape, jnp.float32) for x in floats]
    state = cosine_adam(learning_rate, len(batches)).init(moves)
    for i, batch in enumerate(batches):
        moves, state, loss = _step(options, moves, state, params, floats, rest, batch)
        if not jnp.isfinite(loss):
            raise ValueError(f"the loss of step {i} is {float(loss)}, expected a finite number")
        if progress:
            progress(i + 1, float(loss))
    return _put_floats([_moved(x, m).astype(x.dtype) for x, m in zip(floats, moves)], rest)


class _Options(NamedTuple):
    """What `_step` is compiled for."""

    fn: Callable
    dense: Callable
    learning_rate: float
    steps: int


@functools.partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def _step(
    options: _Options,
    moves: list[Array],
    state: Any,
    params: Any,
    floats: list[Array],
    rest: Any,
    batch: tuple,
) -> tuple[list[Array], Any, Array]:
    """(moves, optimizer state, loss before the step); `floats` and `rest` of `_take_floats`."""
    fn, dense, learning_rate, steps = options
    target = dense(params, *batch)

    def loss(moves):
        tree = _put_floats([_moved(x, m) for x, m in zip(floats, moves)], rest)
        decoding = jax.tree.map(_decoding, tree, is_leaf=is_encoded)
        return divergence(target, lift(fn)(decoding, *batch))

    value, gradient = jax.value_and_grad(loss)(moves)
    updates, state = cosine_adam(learning_rate, steps).update(gradient, state)
    return [m + u for m, u in zip(moves, updates)], state, value


def _decoding(x: Any) -> Any:
    """An encoded leaf as `Decoding`; every other leaf as it is."""
    if isinstance(x, Segmented):
        return Segmented(tuple(map(_decoding, x.parts)))
    return Decoding(x) if is_encoded(x) else x


def _moved(x: Array, move: Array) -> Array:
    """x + move · the root mean square of each matrix of x, in f32."""
    x = x.astype(jnp.float32)
    return x + move * jnp.sqrt(jnp.square(x).mean((-2, -1), keepdims=True))


def _take_floats(tree: Any) -> tuple[list[Array], Any]:
    """(the float arrays inside encoded leaves, the tree with None in their places)."""
    leaves, structure = jax.tree.flatten(tree, is_leaf=is_encoded)
    floats, rest = [], []
    for leaf in leaves:
        arrays, leaf_structure = jax.tree.flatten(leaf)
        trained = [is_encoded(leaf) and jnp.issubdtype(a.dtype, jnp.floating) for a in arrays]
        floats += [a for a, t in zip(arrays, trained) if t]
        rest.append(_Rest([None if t else a for a, t in zip(arrays, trained)], leaf_structure))
    return floats, _Rest(rest, structure)


def _put_floats(floats: list[Array], rest: Any) -> Any:
    """The tree that `_take_floats` took apart, with these floats."""
    arrays = iter(floats)
    filled = lambda r: r.structure.unflatten([next(arrays) if a is None else a for a in r.arrays])
    return rest.structure.unflatten([filled(r) for r in rest.arrays])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Rest:
    """The flattened arrays of a leaf, None where a float was taken out, and its structure."""

    arrays: list
    structure: Any = dataclasses.field(metadata=dict(static=True))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Decoding(Encoded):
    """A leaf whose products decode it first: the fastest way for the many rows of training."""

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
