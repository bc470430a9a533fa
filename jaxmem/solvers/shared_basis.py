"""Basis: layers that share a basis, W_l = U_l · V_g(l): low rank, with one V for many layers."""

import dataclasses
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np
from jax import Array

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
        matrix, fold, index = stacked_layers(w, axes, self)
        members = layers_by_group(index)
        layers, size = members.shape[1], fold.n * fold.k
        if self.rank >= fold.k or self.rank * (layers * fold.n + fold.k) >= layers * size:
            raise ValueError(
                f"rank {self.rank} saves nothing on {layers} {fold.k} x {fold.n} layers"
            )
        matrix = matrix.astype(jnp.float32)
        tall = matrix[members].reshape(self.groups, layers * fold.n, fold.k)
        weighted, unweight = tall, lambda v: v
        if stats is not None:
            root, inverse = _root(stats, members)
            weighted, unweight = tall @ root, lambda v: v @ inverse
        _, vectors = jnp.linalg.eigh(weighted.mT @ weighted)  # (groups, k, k)
        right = vectors[..., : -self.rank - 1 : -1]  # (groups, k, r)
        u, v = jnp.matmul(weighted, right), unweight(right.mT)
        # give each column of u and its row of v the same norm, so that both round equally well
        norm = lambda a, axis: jnp.maximum(jnp.linalg.norm(a, axis=axis, keepdims=True), 1e-30)
        balance = jnp.sqrt(norm(v, -1).mT / norm(u, -2))
        u, v = u * balance, v / balance.mT
        u = u.reshape(-1, fold.n, self.rank)[np.argsort(members.reshape(-1))]
        u, v = u.astype(w.dtype), v.astype(w.dtype)
        if self.codec is not None:
            u, v = self.codec.encode(u, (-1,)), self.codec.encode(v, (-1,))
        shared = SharedArray(v, jnp.asarray(index), jnp.dtype(w.dtype))
        return LowRankArray(u, shared, fold, jnp.dtype(w.dtype))


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
