"""Basis: layers that share a basis, W_l = U_l · V_g(l): low rank, one factor for many layers."""

import dataclasses
from typing import Any, ClassVar, Literal

import jax.numpy as jnp
import numpy as np
from jax import Array

from ..codecs.low_rank import LowRankArray
from ..codecs.shared import DAMPING, SharedArray, by_group, checked_sharing, layers_of


@dataclasses.dataclass(frozen=True)
class Basis:
    """The `rank` directions of inputs that serve all layers of a group best, and their weights.

    Layers of a group are one tall matrix, of which V keeps the largest singular values; with
    `stats` those of what it computes, fed the mean of the layers' moments. k·n numbers a layer
    become rank·n, and rank·k for a group. `groups` and `order` are as in `Shared`; `codec` encodes
    both factors. Wang et al., 2024 (Basis Sharing).

    Raises:
        ValueError: a rank below 1 or that saves nothing; groups or a weight that `Shared` refuses.

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
        if self.rank < 1:
            raise ValueError(f"Basis takes a rank of at least 1, got {self.rank}")
        checked_sharing(self)

    def encode(self, w: Any, axes: tuple[int, ...] = (-2,), stats: Any = None) -> LowRankArray:
        matrix, fold, index = layers_of(w, axes, self)
        members = by_group(index)
        each, size = members.shape[1], fold.n * fold.k
        if self.rank >= fold.k or self.rank * (each * fold.n + fold.k) >= each * size:
            raise ValueError(f"rank {self.rank} saves nothing on {each} {fold.k} x {fold.n} layers")
        matrix = matrix.astype(jnp.float32)
        tall = matrix[members].reshape(self.groups, each * fold.n, fold.k)
        fed, back = tall, lambda v: v
        if stats is not None:
            root, inverse = _root(stats, members)
            fed, back = tall @ root, lambda v: v @ inverse
        _, vectors = jnp.linalg.eigh(fed.mT @ fed)  # k x k, however many the layers
        right = vectors[..., : -self.rank - 1 : -1]  # (groups, k, r)
        u, v = jnp.matmul(fed, right), back(right.mT)
        size = lambda a, axis: jnp.maximum(jnp.linalg.norm(a, axis=axis, keepdims=True), 1e-30)
        even = jnp.sqrt(size(v, -1).mT / size(u, -2))  # so that u and v round alike
        u, v = u * even, v / even.mT
        u = u.reshape(-1, fold.n, self.rank)[np.argsort(members.reshape(-1))]
        u, v = u.astype(w.dtype), v.astype(w.dtype)
        if self.codec is not None:
            u, v = self.codec.encode(u, (-1,)), self.codec.encode(v, (-1,))
        shared = SharedArray(v, jnp.asarray(index), jnp.dtype(w.dtype))
        return LowRankArray(u, shared, fold, jnp.dtype(w.dtype))


def _root(stats: Any, members: np.ndarray) -> tuple[Array, Array]:
    """S and its inverse (groups, k, k), S Sᵀ = the mean of E[x xᵀ] over the layers of a group."""
    mean = stats.second[members].mean(1)
    if stats.second.ndim == stats.mean.ndim:
        mean = mean[..., None] * jnp.eye(mean.shape[-1])[None]
    values, vectors = jnp.linalg.eigh(mean)
    values = jnp.sqrt(jnp.maximum(values, DAMPING * values.mean(-1, keepdims=True) + 1e-30))
    return vectors * values[..., None, :], (vectors / values[..., None, :]).mT
