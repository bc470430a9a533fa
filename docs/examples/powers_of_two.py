"""PowersOfTwo: w ≈ sign · scale / 2^e, one byte a weight: an example of a codec of your own."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxmem.core.fold import Fold
from jaxmem.core.leaf import divided_shape, is_encoded
from jaxmem.core.matrix_leaf import MatrixLeaf

LEAST = 126  # the largest exponent e that a byte holds beside the sign and zero


@dataclasses.dataclass(frozen=True)
class PowersOfTwo:
    """The nearest power of two times the largest weight of the output channel.

    Error: |w − decode| ≤ 0.42 · |w|. Miyashita et al., 2016.

    Example:
        >>> PowersOfTwo().encode(jnp.array([[4.0], [-1.1], [0.0]])).decode()[:, 0].tolist()
        [4.0, -1.0, 0.0]
    """

    def encode(self, w: Any, axes: tuple[int, ...] = (-2,), stats: Any = None):
        if is_encoded(w):  # a leaf of another codec: encode the arrays inside it
            return w.map(self.encode)
        matrix, fold = Fold.from_weight(w, axes)  # (*stack, n, k): k holds the summed axes
        matrix = matrix.astype(jnp.float32)
        scale = jnp.abs(matrix).max(-1, keepdims=True, initial=0.0)
        ratio = jnp.abs(matrix) / jnp.where(scale > 0, scale, 1.0)
        exponent = jnp.clip(jnp.round(-jnp.log2(ratio)), 0, LEAST)
        codes = (jnp.sign(matrix) * (1 + exponent)).astype(jnp.int8)
        return PowersOfTwoArray(codes, scale, fold, jnp.dtype(w.dtype))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PowersOfTwoArray(MatrixLeaf):
    """Codes ±(1 + e), or 0 for zero, and one scale for each row."""

    codes: Array  # (*stack, n, k), int8
    scale: Array  # (*stack, n, 1), f32
    fold: Fold = dataclasses.field(metadata=dict(static=True))
    dtype: Any = dataclasses.field(metadata=dict(static=True))

    batch_shape = property(lambda self: self.codes.shape[:-2])

    def rows(self):
        codes = self.codes.astype(jnp.float32)
        return jnp.sign(codes) * self.scale * jnp.exp2(1.0 - jnp.abs(codes))

    def slice_rows(self, start, size):
        cut = lambda a: lax.dynamic_slice_in_dim(a, start, size, 0)
        return dataclasses.replace(self, codes=cut(self.codes), scale=cut(self.scale))

    def take_rows(self, index):
        return dataclasses.replace(self, codes=self.codes[index], scale=self.scale[index]).rows()

    def shard_matrix(self, fold, side, parts):
        axis = -2 if side == "kept" else -1
        codes = divided_shape(self.codes, axis, parts)
        scale = divided_shape(self.scale, axis, parts) if side == "kept" else self.scale
        return dataclasses.replace(self, codes=codes, scale=scale, fold=fold)
