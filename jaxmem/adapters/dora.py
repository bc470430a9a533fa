"""DoRA: m · (w + u · v) / ‖w + u · v‖, the norm that of each output's weights (Liu et al., 2024).

No gradient goes through the norm, as in section 4.3 of the paper and in PEFT.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..codecs.sum import SumArray
from ..core.arguments import TREE, takes
from ..core.fold import Fold
from ..core.leaf import Encoded, divided_shape, is_encoded
from ..core.matrix_leaf import MatrixLeaf
from ..core.paths import is_whole, paths
from ..core.row_slices import BLOCK_WEIGHTS


@takes(params=TREE)
def with_magnitudes(params: Any, pairs: dict[str, dict]) -> dict[str, dict]:
    """The pairs of `adapters` with magnitudes m (*stack, n): those of DoRA, to train as well.

    m is first the norm of each output's weights, so that `attach` changes nothing at the start.

    Raises:
        ValueError: a path of `pairs` is not one of `params`.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmem as jm
        >>> params = {"kernel": 2 * jnp.ones((64, 32))}
        >>> pairs = with_magnitudes(params, jm.adapters.adapters(jax.random.key(0), params, 4))
        >>> float(pairs["kernel"]["m"][0])
        16.0
    """
    leaves = dict(zip(paths(params), jax.tree.leaves(params, is_leaf=is_whole)))
    if unknown := sorted(set(pairs) - set(leaves)):
        raise ValueError(f"adapters name {unknown[0]!r}, which is no weight")
    norms = lambda path, pair: row_norms(leaves[path], pair["u"], pair["v"])
    return {path: pair | {"m": norms(path, pair)} for path, pair in pairs.items()}


@functools.partial(jax.jit, inline=True)
def row_norms(leaf: Any, u: Array, v: Array) -> Array:
    """‖w + u · v‖ of each output of a weight, (*stack, n) in f32, without a gradient.

    An encoded weight is decoded some rows at a time. A dense one is (*stack, k, n).

    Example:
        >>> row_norms(jnp.ones((4, 2)), jnp.zeros((2, 1)), jnp.zeros((1, 4))).tolist()
        [2.0, 2.0]
    """
    leaf, u, v = jax.tree.map(lax.stop_gradient, (leaf, u, v))
    if is_encoded(leaf) and not isinstance(leaf, MatrixLeaf):
        leaf = leaf.astype(jnp.float32).decode()
    run = _layer_norms
    for _ in range(u.ndim - 2):
        run = functools.partial(lax.map, lambda args, run=run: run(args))
    return run((leaf, u, v))


def _layer_norms(args: tuple[Any, Array, Array]) -> Array:
    """The norms (n,) of one layer."""
    leaf, u, v = args
    n, k = len(u), v.shape[-1]
    size = _tile_rows(n, k)
    u, v = u.astype(jnp.float32), v.astype(jnp.float32)

    def tile(start):
        if isinstance(leaf, MatrixLeaf):
            rows = leaf.slice_rows(start, size).rows()
        else:
            rows = lax.dynamic_slice_in_dim(leaf, start, size, -1).astype(jnp.float32).T
        rows = rows + lax.dynamic_slice_in_dim(u, start, size, 0) @ v
        return jnp.sqrt(jnp.square(rows).sum(-1))

    return lax.map(tile, jnp.arange(0, n, size, dtype=jnp.int32)).reshape(n)


def _tile_rows(n: int, k: int) -> int:
    """Rows of a tile: a divisor of n that is a multiple of 8, or n.

    Example:
        >>> _tile_rows(14336, 4096), _tile_rows(49, 64)
        (64, 49)
    """
    most = max(1, BLOCK_WEIGHTS // (8 * k))
    return n if n % 8 else 8 * max(d for d in range(1, most + 1) if n // 8 % d == 0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DoraArray(Encoded):
    """A weight and its pair, with a factor for each output: m / ‖w + u · v‖."""

    whole: SumArray  # w + u · v: its last part is the pair
    factor: Array  # (*stack, n) f32

    shape = property(lambda self: self.whole.shape)
    dtype = property(lambda self: self.whole.dtype)
    stack = property(lambda self: self.whole.stack)
    rounds_inputs = property(lambda self: self.whole.rounds_inputs)

    @property
    def fold(self) -> Fold:
        return self.whole.parts[-1].fold

    def decode(self):
        fold, stack = self.fold, self.factor.shape[:-1]
        factor = self.factor.reshape(*stack, *fold.kept, *(1 for _ in fold.summed))
        factor = factor.transpose([a + self.ndim for a in fold.full_order(self.ndim)])
        return (self.whole.astype(jnp.float32).decode() * factor).astype(self.dtype)

    def astype(self, dtype):
        return dataclasses.replace(self, whole=self.whole.astype(dtype))

    def dot(self, x, dims, preferred_element_type=None, precision=None):
        (x_sum, w_sum), (_, w_batch) = dims
        fold, stack = self.fold, self.factor.shape[:-1]
        outputs = len(stack) + len(fold.kept)
        matrix_axis = [a + self.ndim for a in fold.full_order(self.ndim)]
        w_free = [a for a in range(self.ndim) if a not in (*w_sum, *w_batch)]
        if sorted(matrix_axis[a] for a in w_sum) != list(range(outputs, self.ndim)):
            return NotImplemented  # it sums over a part of the inputs, or over outputs
        options = dict(precision=precision, preferred_element_type=jnp.float32)
        y = self.whole.dot(x, dims, **options)
        factor = self.factor.reshape(*stack, *fold.kept)
        factor = factor.transpose([matrix_axis[a] for a in (*w_batch, *w_free)])
        sizes, batch = factor.shape, len(w_batch)
        between = (1,) * (x.ndim - len(x_sum) - batch)
        y = y * factor.reshape(*sizes[:batch], *between, *sizes[batch:])
        return y.astype(preferred_element_type or jnp.promote_types(x.dtype, self.dtype))

    def transpose(self, axes):
        return self._with(self.whole.transpose(axes))

    def reshape(self, shape):
        return self._with(self.whole.reshape(shape))

    def shard_shape(self, axis, parts):
        axis -= self.ndim if axis >= 0 else 0
        whole = self.whole.shard_shape(axis, parts)
        if whole is NotImplemented:
            return whole
        if axis + self.ndim < len(self.factor.shape) - 1:
            place = axis + self.ndim - self.factor.ndim
        elif self.fold.side_of_axis(axis) == "kept":
            place = -1
        else:
            return self._with(whole)
        factor = divided_shape(self.factor, place, parts)
        return factor if factor is NotImplemented else DoraArray(whole, factor)

    def _with(self, whole):
        return whole if whole is NotImplemented else dataclasses.replace(self, whole=whole)
