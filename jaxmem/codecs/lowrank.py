"""LowRank: w ≈ u · v, the nearest matrix of rank r (Eckart and Young, 1936)."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from ..folding import Fold, Folded
from ..leaf import decode, is_encoded, shrunk
from ..lifting import dot_general


@dataclasses.dataclass(frozen=True)
class LowRank:
    """Keeps the `rank` largest singular values; k·n numbers become rank · (k + n).

    Raises:
        ValueError: the rank is not positive, or saves nothing on a weight.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> jm.nbytes(LowRank(4).encode(jnp.ones((64, 32))))
        1536
    """

    rank: int

    def __post_init__(self):
        if self.rank < 1:
            raise ValueError(f"LowRank takes a rank of at least 1, got {self.rank}")

    def encode(self, w: Any, axes: tuple[int, ...] = (-2,), stats: Any = None) -> "LowRankArray":
        if is_encoded(w):
            raise TypeError("LowRank factorises a dense weight: in a Chain it comes first")
        matrix, fold = Fold.of(w, axes)
        if self.rank * (fold.n + fold.k) >= fold.n * fold.k:
            raise ValueError(f"rank {self.rank} saves nothing on a {fold.k} x {fold.n} weight")
        u, s, v = jnp.linalg.svd(matrix.astype(jnp.float32), full_matrices=False)
        root = jnp.sqrt(s[..., : self.rank])  # shared out, so that u and v round alike
        u = u[..., : self.rank] * root[..., None, :]
        v = root[..., None] * v[..., : self.rank, :]
        return LowRankArray(u.astype(w.dtype), v.astype(w.dtype), fold, jnp.dtype(w.dtype))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LowRankArray(Folded):
    """Rows (n, k) as u (n, r) . v (r, k); each factor an array or encoded."""

    u: Any  # (*stack, n, r)
    v: Any  # (*stack, r, k)
    fold: Fold = dataclasses.field(metadata=dict(static=True))
    dtype: Any = dataclasses.field(metadata=dict(static=True))

    lead = property(lambda self: self.u.shape[:-2])

    def rows(self):
        u, v = (decode(part).astype(jnp.float32) for part in (self.u, self.v))
        return jnp.matmul(u, v)

    def narrow(self, start, size):
        u = jax.lax.dynamic_slice_in_dim(decode(self.u), start, size, 0)
        return dataclasses.replace(self, u=u)

    def piece(self, fold, side, parts):
        name, axis = ("u", -2) if side == "kept" else ("v", -1)
        factor = shrunk(getattr(self, name), axis, parts)
        if factor is NotImplemented:
            return factor
        return dataclasses.replace(self, fold=fold, **{name: factor})

    def pick(self, index):
        rows = self.u.take(index) if is_encoded(self.u) else self.u[index]
        if rows is NotImplemented:
            rows = self.u.decode()[index]
        return jnp.matmul(rows.astype(jnp.float32), decode(self.v).astype(jnp.float32))

    def map(self, fn):
        return dataclasses.replace(self, u=fn(self.u, (-1,)), v=fn(self.v, (-1,)))

    def matmul(self, x, precision=None):
        last = (((1,), (1,)), ((), ()))
        product = functools.partial(
            dot_general, dims=last, precision=precision, preferred_element_type=jnp.float32
        )
        y = product(x, self.v.astype(x.dtype)).astype(x.dtype)
        return product(y, self.u.astype(x.dtype))
