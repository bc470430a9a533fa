"""Basis: layers that share a basis, W_l = U_l · V_g(l): low rank, with one V for many layers."""

import dataclasses
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ..codecs.low_rank import LowRankArray
from ..codecs.shared_layers import (
    DAMPING,
    SharedArray,
    check_sharing,
    layers_by_group,
    stacked_layers,
)
from ..core.arguments import check_fields
from ..core.codec import OPTIONAL_CODEC
from ..core.fold import matrix_shape
from ..core.row_products import gram_of_columns, times
from ..core.row_slices import slice_along


@dataclasses.dataclass(frozen=True)
class Basis:
    """Low rank for a stack of layers: each group of layers shares the factor V (rank, k).

    The matrices of a group, one below the other, are one tall matrix, and V spans its largest
    singular values. With `stats`, V spans those of the tall matrix times H^½, where H is the mean
    of the layers' E[x xᵀ]. k·n numbers per layer become rank·n, plus rank·k per group. `groups` and
    `order` are as in `Shared`; `codec` encodes both factors. Wang et al., 2024 (Basis Sharing).

    Raises:
        ValueError: `rank` is below 1 or saves nothing; `Shared` would refuse the groups or the
            weight.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> leaf = Basis(4, groups=1).encode(jnp.ones((6, 64, 32)))
        >>> jm.nbytes(leaf) == 4 * (6 * 4 * 32 + 4 * 64) + 6  # and a byte a layer
        True
    """

    rank: int
    _: dataclasses.KW_ONLY
    groups: int = 1
    order: Literal["sequence", "cycle"] = "sequence"
    codec: Any = None
    layers_together: ClassVar[bool] = True

    def __post_init__(self):
        check_fields(self, codec=OPTIONAL_CODEC)
        if self.rank < 1:
            raise ValueError(f"Basis takes a rank of at least 1, got {self.rank}")
        check_sharing(self)

    def encode(self, w: Any, axes: tuple[int, ...] = (-2,), stats: Any = None) -> LowRankArray:
        return self.encode_by_slices(w, axes, stats)

    def encode_by_slices(self, w, axes, stats):
        """Encodes a stack, of which one layer is read at a time."""
        fold, index = stacked_layers(w, axes, self)
        members = layers_by_group(index)
        layers, size = members.shape[1], fold.n * fold.k
        if self.rank >= fold.k or self.rank * (layers * fold.n + fold.k) >= layers * size:
            raise ValueError(
                f"rank {self.rank} saves nothing on {layers} {fold.k} x {fold.n} layers"
            )
        axes = tuple(a - w.ndim if a >= 0 else a for a in axes)
        root, inverse = (None, None) if stats is None else _root(stats, members)
        gram = lax.map(lambda args: _gram(w, axes, *args), (jnp.asarray(members), root))
        _, vectors = jnp.linalg.eigh(gram)  # (groups, k, k)
        right = vectors[..., : -self.rank - 1 : -1]  # (groups, k, r)
        v = right.mT if root is None else right.mT @ inverse
        right = right if root is None else root @ right
        product = lambda i: times(slice_along(w, i[0], 1, 0)[0], right[i[1]], axes)
        u = lax.map(product, (jnp.arange(len(index)), jnp.asarray(index)))
        # give each column of u and its row of v the same norm, so that both round equally well
        norm = lambda a, axis: jnp.maximum(jnp.linalg.norm(a, axis=axis, keepdims=True), 1e-30)
        length = jnp.sqrt(jnp.square(norm(u, -2))[members].sum(1))  # of all layers of a group
        balance = jnp.sqrt(norm(v, -1).mT / length)
        u, v = u * balance[index], v / balance.mT
        u, v = u.astype(w.dtype), v.astype(w.dtype)
        if self.codec is not None:
            u, v = self.codec.encode(u, (-1,)), self.codec.encode(v, (-1,))
        shared = SharedArray(v, jnp.asarray(index), jnp.dtype(w.dtype))
        return LowRankArray(u, shared, fold, jnp.dtype(w.dtype))


def _gram(w: Array, axes: tuple[int, ...], layers: Array, root: Array | None) -> Array:
    """Σ (W S)ᵀ (W S), (k, k), over the matrices W of some layers; S is `root`, or the identity."""
    add = lambda i, total: total + gram_of_columns(slice_along(w, layers[i], 1, 0)[0], axes, root)
    k = matrix_shape(w, axes)[-1]
    return lax.fori_loop(0, len(layers), add, jnp.zeros((k, k)))


def _root(stats: Any, members: np.ndarray) -> tuple[Array, Array]:
    """S and its inverse (groups, k, k), where S Sᵀ is the mean of E[x xᵀ] over a group's layers.

    `members` (groups, layers) holds the index of each layer in the stack.
    """
    mean = stats.second[members].mean(1)
    if stats.second.ndim == stats.mean.ndim:
        mean = mean[..., None] * jnp.eye(mean.shape[-1])[None]
    values, vectors = jnp.linalg.eigh(mean)
    values = jnp.sqrt(jnp.maximum(values, DAMPING * values.mean(-1, keepdims=True) + 1e-30))
    return vectors * values[..., None, :], (vectors / values[..., None, :]).mT
