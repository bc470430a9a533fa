"""LowRank: w ≈ u · v, the nearest matrix of rank r (Eckart and Young, 1936)."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from ..core.arguments import check_fields
from ..core.fold import Fold, matrix_shape
from ..core.leaf import decode, divided_shape, is_encoded
from ..core.lifting import dot_general
from ..core.matrix_leaf import MatrixLeaf
from ..core.row_products import (
    gram_of_columns,
    gram_of_rows,
    matmul,
    times,
    transposed_times,
)

OVERSAMPLING = 8  # vectors that are found beside those that are kept
MENDING_STEPS = 2


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
        return _encode(self, w, tuple(a - w.ndim if a >= 0 else a for a in axes), stats)

    def encode_by_slices(self, w, axes, stats):
        fold = Fold.of(w, axes)
        if self.rank * (fold.n + fold.k) >= fold.n * fold.k:
            raise ValueError(f"rank {self.rank} saves nothing on a {fold.k} x {fold.n} weight")
        root = None if stats is None else _root(stats)
        u = left_singular_vectors(w, axes, self.rank, root)
        v = transposed_times(w, u, axes).T  # the projection onto u is nearest in either norm
        size = jnp.linalg.norm(v, axis=-1, keepdims=True)
        root = jnp.sqrt(jnp.where(size > 0, size, 1.0))  # u and v get equal sizes, and round alike
        u, v = u * root.T, v / root
        return LowRankArray(u.astype(w.dtype), v.astype(w.dtype), fold, jnp.dtype(w.dtype))


@functools.partial(jax.jit, static_argnums=(0, 2))
def _encode(codec, w, axes, stats):
    """The leaf of `w`, one layer of a stack after another."""
    layer = lambda args: codec.encode_by_slices(args[0], axes, args[1])
    for _ in range(len(matrix_shape(w, axes)) - 2):
        layer = functools.partial(jax.lax.map, layer)
    return layer((w, stats))


def _root(stats):
    """S (k, k) with S Sᵀ = E[x xᵀ], or its diagonal (k,)."""
    if stats.second.ndim == stats.mean.ndim:
        return jnp.sqrt(stats.diag)
    values, vectors = jnp.linalg.eigh(stats.second)
    return vectors * jnp.sqrt(jnp.maximum(values, 0.0))[None]


def left_singular_vectors(w, axes, count, root=None):
    """The first `count` left singular vectors (n, count) of W · S, of a matrix W (n, k).

    Those of the smaller Gram matrix are found first. It is a square, in which f32 loses what is
    below 3e-4 of the largest, so products with the matrix itself then mend them, as in subspace
    iteration (Halko, Martinsson and Tropp, 2011).

    Args:
        w: one layer of a weight, an array or a `Remainder`.
        axes: the axes that products sum over, negative.
        count: how many vectors.
        root: S (k, k) or its diagonal (k,); None: the identity.
    """
    n, k = matrix_shape(w, axes)
    found = min(count + OVERSAMPLING, n, k)
    diagonal = root is not None and root.ndim == 1
    square = jnp.diag(root) if diagonal else root
    after = lambda x: x if root is None else x * root[:, None] if diagonal else matmul(root, x)
    before = after if root is None or diagonal else lambda x: matmul(root.T, x)
    if k <= n:
        right = jnp.linalg.eigh(gram_of_columns(w, axes, square))[1][:, -found:]
        left = times(w, after(right), axes)
    else:
        left = jnp.linalg.eigh(gram_of_rows(w, axes, square))[1][:, -found:]

    def mended(_, state):
        """The next vectors, those before in an orthonormal basis, and R of the matrix times it."""
        basis = jnp.linalg.qr(state[0])[0]
        right, triangle = jnp.linalg.qr(before(transposed_times(w, basis, axes)))
        return times(w, after(right), axes), basis, triangle

    first = (left, left, jnp.zeros((found, found)))
    _, basis, triangle = jax.lax.fori_loop(0, MENDING_STEPS, mended, first)
    return matmul(basis, jnp.linalg.svd(triangle)[2].T[:, :count])


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
