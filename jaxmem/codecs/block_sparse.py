"""Blocks: whole blocks of a matrix stay, dense, and a product takes only the inputs they read."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..core.leaf import divided_shape
from ..kernels.block_sparse_matmul import block_sparse_product, supports
from ..kernels.dispatch import on_one_chip
from ..kernels.tiled_matmul import decoded_product
from .sparse import (
    Count,
    Sparse,
    SparseArray,
    checked_density,
    compressed,
    highest,
    index_dtype,
    kept_count,
    kept_of,
    narrow_values,
    pick_values,
    value_rows,
)


@dataclasses.dataclass(frozen=True)
class Blocks(Sparse):
    """Keeps the blocks of `block` = (outputs, inputs) weights that are largest in norm.

    Every strip of outputs keeps as many. Blocks that the weight ends within are filled up with
    zeros, which count. Of the sparse forms this one computes: for a few rows of x (no more than a
    block has outputs) a product reads the kept bytes and nothing else, on a CPU faster than dense
    from a density of one half with blocks of 32 x 256, on a TPU with 128 x 512. It costs more
    accuracy than single weights do. Gray et al., 2017.

    Raises:
        ValueError: a density that is not between 0 and 1, or keeps none or all of a strip; a block
            without weights.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> leaf = Blocks(0.25, block=(32, 32)).encode(jnp.ones((256, 64)))
        >>> jm.nbytes(leaf)  # 2 strips of 2 blocks: 4 of 4,096 bytes, and where they stand
        16388
    """

    density: float = 0.5
    _: dataclasses.KW_ONLY
    block: tuple[int, int] = (32, 32)

    def __post_init__(self):
        checked_density(self.density, "Blocks")
        object.__setattr__(self, "block", tuple(self.block))
        if len(self.block) != 2 or min(self.block) < 1:
            raise ValueError(f"Blocks takes a block of (outputs, inputs), got {self.block}")

    def mask(self, scores, count: Count = kept_of):
        whole = _cut(scores, self.block)
        norms = (whole * whole).sum((-3, -1))  # (*stack, strips, blocks)
        blocks = norms.shape[-1]
        there = highest(norms, count(blocks, self._count(blocks)))
        wide = jnp.broadcast_to(there[..., None, :, None], whole.shape)
        wide = wide.reshape(*scores.shape[:-2], -1, blocks * self.block[1])
        return wide[..., : scores.shape[-2], : scores.shape[-1]]

    def hold(self, matrix, mask, fold, dtype):
        there = _cut(mask, self.block).any((-3, -1))
        places = compressed(there, there, self._count(there.shape[-1]))[1]
        whole = _cut(matrix, self.block)  # (*stack, strips, outputs, blocks, inputs)
        values = jnp.take_along_axis(whole, places[..., None, :, None], -2)
        values = values.reshape(*matrix.shape[:-2], -1, places.shape[-1] * self.block[1])
        places = places.astype(index_dtype(there.shape[-1]))
        return BlocksArray(values.astype(dtype), fold, jnp.dtype(dtype), places, self.block[1])

    def _count(self, blocks):
        return kept_count(self.density, blocks, f"blocks of {self.block[1]} inputs")


def _cut(matrix: Array, block: tuple[int, int]) -> Array:
    """(*stack, n, k) as (*stack, strips, outputs, blocks, inputs), filled up with zeros."""
    *stack, n, k = matrix.shape
    short = [(0, 0)] * len(stack) + [(0, -n % block[0]), (0, -k % block[1])]
    strips, blocks = -(-n // block[0]), -(-k // block[1])
    return jnp.pad(matrix, short).reshape(*stack, strips, block[0], blocks, block[1])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BlocksArray(SparseArray):
    """The kept blocks of each strip side by side: values (*stack, ⌈n⌉, kept · inputs)."""

    places: Array  # (*stack, strips, kept) uint8 or uint16: which blocks of inputs
    inputs: int = dataclasses.field(metadata=dict(static=True))

    blocks = property(lambda self: -(-self.fold.k // self.inputs))

    def rows(self):
        return self._dense(value_rows(self.values), self.places)[..., : self.fold.n, :]

    def _dense(self, values, places):
        """Rows (*stack, n, k) of values (*stack, n, kept · inputs)."""
        kept = places.shape[-1]
        values = values.reshape(*places.shape[:-1], -1, kept, self.inputs)
        nth = jnp.arange(self.blocks).reshape((1,) * places.ndim + (-1,))
        found = places[..., None].astype(jnp.int32) == nth  # (*stack, strips, kept, blocks)
        slot = jnp.argmax(found, -2)[..., None, :, None]
        dense = jnp.take_along_axis(values, slot, -2)
        dense = jnp.where(found.any(-2)[..., None, :, None], dense, 0.0)
        shape = (*places.shape[:-2], -1, self.blocks * self.inputs)
        return dense.reshape(shape)[..., : self.fold.k]

    def slice_rows(self, start, size):
        """A leaf of strips of one row."""
        height = self.values.shape[-2] // self.places.shape[-2]
        rows = start + jnp.arange(size)
        values = narrow_values(self.values, start, size)
        return dataclasses.replace(self, values=values, places=self.places[rows // height])

    def shard_matrix(self, fold, side, parts):
        height = self.values.shape[-2] // self.places.shape[-2]
        if side == "summed" or fold.n % height:
            return NotImplemented
        return self.cut_rows(fold, parts, places=divided_shape(self.places, -2, parts))

    def take_rows(self, index):
        at = index.reshape(-1)
        height = self.values.shape[-2] // self.places.shape[-2]
        rows = self._dense(pick_values(self.values, at), self.places[at // height])
        return rows.reshape(*index.shape, self.fold.k)

    def matmul(self, x, precision=None):
        return _matmul(x, self, precision)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _matmul(x, leaf, precision):
    """x (m, k) . rows^T: (m, n) f32, by a kernel on one TPU chip."""
    height = leaf.values.shape[-2] // leaf.places.shape[-2]
    plain = functools.partial(_by_rows(x, leaf), precision=precision)
    whole = isinstance(leaf.values, Array)
    if not whole or not supports(height, leaf.inputs, leaf.places.shape[-1], x.shape[1]):
        return plain(x, leaf)
    kernel = lambda x, leaf: block_sparse_product(
        x, leaf.values, leaf.places, leaf.inputs, leaf.fold.n, precision
    )
    return on_one_chip(kernel, plain, x, leaf)


@_matmul.defjvp
def _matmul_jvp(precision, primals, tangents):
    of = functools.partial(_by_rows(*primals), precision=precision)
    return _matmul(*primals, precision), jax.jvp(of, primals, tangents)[1]


def _by_rows(x, leaf):
    """The product by XLA that is cheaper for so many rows of x."""
    height = leaf.values.shape[-2] // leaf.places.shape[-2]
    return _gathered if x.shape[0] <= height else decoded_product


def _gathered(x, leaf, precision):
    """x (m, k) . rows^T: each strip multiplies the blocks of x that it reads."""
    strips, kept = leaf.places.shape
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % leaf.inputs)))
    x = x.reshape(x.shape[0], leaf.blocks, leaf.inputs)
    read = x[:, leaf.places].reshape(x.shape[0], strips, kept * leaf.inputs)
    values = value_rows(leaf.values) if leaf.values.dtype != x.dtype else leaf.values
    values = values if isinstance(values, Array) else value_rows(values)
    values = values.astype(x.dtype).reshape(strips, -1, kept * leaf.inputs)
    dims = (((2,), (2,)), ((1,), (0,)))
    y = lax.dot_general(read, values, dims, precision, preferred_element_type=jnp.float32)
    return jnp.moveaxis(y, 0, 1).reshape(x.shape[0], -1)[:, : leaf.fold.n]
