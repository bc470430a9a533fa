"""Shared: several layers of a stack share one weight, W_l = B_g(l)."""

import dataclasses
import functools
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ..core.arguments import check_fields
from ..core.codec import OPTIONAL_CODEC
from ..core.fold import Fold, matrix_shape
from ..core.leaf import Tied, decode, divided_shape, is_encoded
from ..core.lifting import dot_general
from ..core.row_slices import slice_along

DAMPING = 0.01  # added to a Gram matrix, as a share of its mean diagonal


@dataclasses.dataclass(frozen=True)
class Shared:
    """Ties the layers of a stacked weight in `groups`; the layers of a group share one weight.

    "sequence" ties neighbours (layers 0 0 1 1), "cycle" repeats the groups (0 1 0 1); one group is
    ALBERT. The shared weight is the mean of its layers; with `stats` it is the weight whose outputs
    have the least squared error from those of the layers. `codec` encodes it. A part of each layer
    alone can be added: `Sum((Shared(10), LowRank(8)))`, an adapter to train.

    Not all arrays of the leaf are stacks: `lift` slices it, in scans too, but a plain `lax.scan` or
    `vmap` of it raises. Lan et al., 2019 (ALBERT); Takase and Kiyono, 2021 (orders).

    Raises:
        ValueError: `groups` is below 1, does not divide the number of layers, or is not below it;
            the weight is not a stack of layers.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> w = jnp.arange(4.0)[:, None, None] * jnp.ones((4, 16, 8))
        >>> Shared(2).encode(w).decode()[:, 0, 0].tolist()
        [0.5, 0.5, 2.5, 2.5]
        >>> Shared(2, order="cycle").encode(w).decode()[:, 0, 0].tolist()
        [1.0, 2.0, 1.0, 2.0]
        >>> jm.nbytes(Shared(2).encode(w)) / jm.nbytes(w)  # a half, and a byte a layer
        0.501953125
    """

    groups: int
    _: dataclasses.KW_ONLY
    order: Literal["sequence", "cycle"] = "sequence"
    codec: Any = None
    layers_together: ClassVar[bool] = True

    def __post_init__(self):
        check_fields(self, codec=OPTIONAL_CODEC)
        check_sharing(self)

    def encode(self, w: Any, axes: tuple[int, ...] = (-2,), stats: Any = None) -> "SharedArray":
        return self.encode_by_slices(w, axes, stats)

    def encode_by_slices(self, w, axes, stats):
        """Encodes a stack, of which one layer is read at a time."""
        fold, index = stacked_layers(w, axes, self)
        members = layers_by_group(index)
        gather = lambda a: a.astype(jnp.float32)[members]  # (groups, layers of a group, ...)
        total = functools.partial(_total, w, axes, members)
        if stats is None:
            base = total() / members.shape[1]
        elif stats.second.ndim == stats.mean.ndim:
            energy = gather(stats.second)[..., None, :]
            energy += 1e-6 * energy.mean((1, -1), keepdims=True) + 1e-30
            base = total(energy, jnp.multiply) / energy.sum(1)
        else:
            gram = gather(stats.second)
            damping = DAMPING * jnp.trace(gram, axis1=-2, axis2=-1)[..., None, None] / fold.k
            gram += (damping + 1e-30) * jnp.eye(fold.k)[None, None]
            both = total(gram, functools.partial(jnp.matmul, precision="highest"))
            base = jnp.linalg.solve(gram.sum(1), both.mT).mT
        base = fold.unfold(base).astype(w.dtype)
        if self.codec is not None:
            mean = lambda a: gather(a).mean(1)
            base = self.codec.encode(
                base, axes, None if stats is None else jax.tree.map(mean, stats)
            )
        return SharedArray(base, jnp.asarray(index), jnp.dtype(w.dtype))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SharedArray(Tied):
    """The weights of the groups, and the index of each layer's group."""

    base: Any  # (groups, *shape of one layer), an array or encoded
    index: Array  # (*stack) uint8
    dtype: Any = dataclasses.field(metadata=dict(static=True))

    shape = property(lambda self: (*self.index.shape, *self.base.shape[1:]))
    stack = property(lambda self: self.index.shape)

    def separate_shared(self):
        return self.index, lambda index: dataclasses.replace(self, index=index)

    def layer_weight(self) -> Any:
        """The weight of an unstacked leaf."""
        pick = lambda a: lax.dynamic_index_in_dim(a, self.index, 0, keepdims=False)
        return jax.tree.map(pick, self.base).astype(self.dtype)

    def decode(self):
        if not self.stack:
            return decode(self.layer_weight())
        return jnp.take(decode(self.base), self.index.astype(jnp.int32), 0).astype(self.dtype)

    def astype(self, dtype):
        return dataclasses.replace(self, dtype=jnp.dtype(dtype))

    def dot(self, x, dims, preferred_element_type=None, precision=None):
        options = dict(precision=precision, preferred_element_type=preferred_element_type)
        if not self.stack:
            return dot_general(x, self.layer_weight(), dims, **options)
        (xc, wc), (xb, wb) = dims
        if 0 in wc:
            return NotImplemented
        inner = lambda axes: tuple(a - 1 for a in axes if a)
        # The stack is an axis of x too if it is a batch axis; else it is the first free axis of w.
        x_stack, out = (xb[wb.index(0)], wb.index(0)) if 0 in wb else (None, x.ndim - len(xc))
        removed = x.ndim if x_stack is None else x_stack
        less = lambda axes: tuple(a - (a > removed) for a in axes if a != removed)
        dims = (less(xc), inner(wc)), (less(xb), inner(wb))
        parts, back = self.separate_shared()
        one = lambda x, index: dot_general(x, back(index), dims, **options)
        return jax.vmap(one, (x_stack, 0), out)(x, parts)

    def take(self, rows):
        if self.stack:
            return NotImplemented
        layer = self.layer_weight()
        return layer.take(rows) if is_encoded(layer) else layer[rows]

    def transpose(self, axes):
        if self.stack and axes[0] != 0:
            return NotImplemented
        axes = axes if self.stack else (0, *(a + 1 for a in axes))
        return self._with_base(self.base.transpose(axes))

    def reshape(self, shape):
        if self.stack and shape[:1] != self.stack:
            return NotImplemented
        inner = shape[1:] if self.stack else shape
        return self._with_base(self.base.reshape((self.base.shape[0], *inner)))

    def shard_shape(self, axis, parts):
        axis -= self.ndim if axis >= 0 else 0
        if -axis > len(self.base.shape) - 1:
            return super().shard_shape(axis, parts)
        return self._with_base(divided_shape(self.base, axis, parts))

    def _with_base(self, base):
        """The leaf with another `base`, or NotImplemented if that is none."""
        return base if base is NotImplemented else dataclasses.replace(self, base=base)


def check_sharing(codec: Any) -> None:
    """Checks `groups` and `order` of a codec.

    Raises:
        ValueError: `groups` is below 1, or `order` is unknown.
    """
    if codec.groups < 1:
        raise ValueError(f"{type(codec).__name__} takes at least 1 group, got {codec.groups}")
    if codec.order not in ("sequence", "cycle"):
        raise ValueError(f'an order is "sequence" or "cycle", got {codec.order!r}')


def stacked_layers(w: Any, axes: tuple[int, ...], codec: Any) -> tuple[Fold, np.ndarray]:
    """(the fold of a layer, the group (layers,) of each layer) of a stacked weight.

    Raises:
        TypeError: the weight is encoded.
        ValueError: it is not a stack of layers, or `groups` does not divide the layers.
    """
    if is_encoded(w):
        raise TypeError(f"{type(codec).__name__} takes a dense weight: in a Chain it is first")
    *stack, _, _ = matrix_shape(w, axes)
    if len(stack) != 1:
        raise ValueError(f"expected a stack of layers to tie, got a weight of shape {w.shape}")
    layers, groups = stack[0], codec.groups
    if layers % groups or groups >= layers or layers > 256:
        raise ValueError(f"{groups} groups of {layers} layers, expected a divisor below {layers}")
    index = np.arange(layers)
    index = index % groups if codec.order == "cycle" else index // (layers // groups)
    return Fold.of(w, axes), index.astype(np.uint8)


def _total(w, axes, members, factors=None, product=None):
    """The sum (groups, n, k) f32 of each group's matrices, one layer after another.

    Each is multiplied by its factor, if there are `factors` (groups, layers of a group, ...).
    """
    axes = tuple(a - w.ndim if a >= 0 else a for a in axes)

    def total(args):
        layers, factors = args

        def add(i, total):
            layer = slice_along(w, layers[i], 1, 0)[0]
            matrix = Fold.from_weight(layer, axes)[0].astype(jnp.float32)
            return total + (matrix if factors is None else product(matrix, factors[i]))

        n, k = matrix_shape(w, axes)[1:]
        return lax.fori_loop(0, members.shape[1], add, jnp.zeros((n, k)))

    return lax.map(total, (jnp.asarray(members), factors))


def layers_by_group(index: np.ndarray) -> np.ndarray:
    """The layers of each group, (groups, layers of a group), given each layer's group."""
    return np.argsort(index, kind="stable").reshape(int(index.max()) + 1, -1)
