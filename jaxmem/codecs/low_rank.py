"""LowRank: w ≈ u · v, the nearest matrix of rank r (Eckart and Young, 1936)."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from ..core.arguments import check_fields
from ..core.fold import Fold
from ..core.leaf import decode, divided_shape, is_encoded
from ..core.lifting import dot_general
from ..core.matrix_leaf import MatrixLeaf


@dataclasses.dataclass(frozen=True)
class LowRank:
    """Keeps the `rank` largest singular values; k·n numbers become rank · (k + n).

    With `stats`, the singular values are those of W · H^½ with H = E[x xᵀ] (or its diagonal): then
    no matrix of this rank has outputs nearer to those of W. In a `Sum` after another codec it
    approximates that codec's error (QERA). Wang et al., 2024 (SVD-LLM); Zhang et al., 2024 (QERA).

    Raises:
        ValueError: `rank` is not positive, or saves nothing on a weight.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> jm.nbytes(LowRank(4).encode(jnp.ones((64, 32))))
        1536
    """

    rank: int

    def __post_init__(self):
        check_fields(self)
        if self.rank < 1:
            raise ValueError(f"LowRank takes a rank of at least 1, got {self.rank}")

    def encode(self, w: Any, axes: tuple[int, ...] = (-2,), stats: Any = None) -> "LowRankArray":
        if is_encoded(w):
            raise TypeError("LowRank factorises a dense weight: in a Chain it comes first")
        matrix, fold = Fold.from_weight(w, axes)
        if self.rank * (fold.n + fold.k) >= fold.n * fold.k:
            raise ValueError(f"rank {self.rank} saves nothing on a {fold.k} x {fold.n} weight")
        matrix = matrix.astype(jnp.float32)
        weighted = matrix if stats is None else _times_root(matrix, stats)
        u = jnp.linalg.svd(weighted, full_matrices=False)[0][..., : self.rank]
        v = u.mT @ matrix  # the projection onto u is nearest in either norm
        size = jnp.linalg.norm(v, axis=-1, keepdims=True)
        root = jnp.sqrt(jnp.where(size > 0, size, 1.0))  # u and v get equal sizes, and round alike
        u, v = u * root.mT, v / root
        return LowRankArray(u.astype(w.dtype), v.astype(w.dtype), fold, jnp.dtype(w.dtype))


def _times_root(matrix, stats):
    """The matrix W times an S with S Sᵀ = E[x xᵀ]."""
    if stats.second.ndim == stats.mean.ndim:
        return matrix * jnp.sqrt(stats.diag)[..., None, :]
    values, vectors = jnp.linalg.eigh(stats.second)
    return matrix @ (vectors * jnp.sqrt(jnp.maximum(values, 0.0))[..., None, :])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LowRankArray(MatrixLeaf):
    """Rows (n, k) as u (n, r) . v (r, k); each factor is an array or encoded."""

    u: Any  # (*stack, n, r)
    v: Any  # (*stack, r, k)
    fold: Fold = dataclasses.field(metadata=dict(static=True))
    dtype: Any = dataclasses.field(metadata=dict(static=True))

    batch_shape = property(lambda self: self.u.shape[:-2])

    def rows(self):
        u, v = (decode(part).astype(jnp.float32) for part in (self.u, self.v))
        return jnp.matmul(u, v)

    def slice_rows(self, start, size):
        u = jax.lax.dynamic_slice_in_dim(decode(self.u), start, size, 0)
        return dataclasses.replace(self, u=u)

    def shard_matrix(self, fold, side, parts):
        name, axis = ("u", -2) if side == "kept" else ("v", -1)
        factor = divided_shape(getattr(self, name), axis, parts)
        if factor is NotImplemented:
            return factor
        return dataclasses.replace(self, fold=fold, **{name: factor})

    def take_rows(self, index):
        rows = self.u.take(index) if is_encoded(self.u) else self.u[index]
        if rows is NotImplemented:
            rows = self.u.decode()[index]
        return jnp.matmul(rows.astype(jnp.float32), decode(self.v).astype(jnp.float32))

    def map(self, fn):
        return dataclasses.replace(self, u=fn(self.u, (-1,)), v=fn(self.v, (-1,)))

    def matmul(self, x, precision=None):
        last_axes = (((1,), (1,)), ((), ()))
        product = functools.partial(
            dot_general, dims=last_axes, precision=precision, preferred_element_type=jnp.float32
        )
        y = product(x, self.v.astype(x.dtype)).astype(x.dtype)
        return product(y, self.u.astype(x.dtype))
