"""Blocks: whole blocks of a matrix are kept, dense; a product reads only their inputs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import Array, lax

from ..core.arguments import INTEGER, Kind, check_fields
from ..core.matrix_leaf import MatrixLeaf
from ..cpu_kernels.integer_rows import integer_rows_product
from ..cpu_kernels.kept_blocks import kept_blocks_product
from ..kernels.decoded_tiles import decoded_product
from ..kernels.dispatch import (
    at_most,
    by_platform,
    differentiated_by,
    on_one_device,
    product_like,
)
from ..kernels.pallas_block_sparse_matmul import block_sparse_product, supports
from .sparse import (
    Count,
    DensitySparse,
    SparseArray,
    codec_count,
    compressed,
    decoded_values,
    highest,
    narrow_indices,
    slice_values,
    take_values,
)

_SIZES = Kind(
    "a tuple of two ints",
    lambda x: isinstance(x, tuple | list) and all(map(INTEGER.accepts, x)),
)


@dataclasses.dataclass(frozen=True)
class Blocks(DensitySparse):
    """Keeps the blocks of `block` = (outputs, inputs) weights that are largest in norm.

    Every strip of `block` outputs keeps the same number of blocks. Zeros fill up the blocks at the
    end of the weight, and take bytes. Of the sparse codecs this one saves time: for a few rows of x
    (at most the outputs of a block) a product reads the kept bytes and nothing else; on a CPU with
    integers in strips of a multiple of 32 outputs, so does one of many rows. It is faster
    than dense from a density of one half, on a CPU with blocks of 32 x 256, on a TPU with
    128 x 512. It loses more accuracy than codecs that keep single weights. Gray et al., 2017.

    Raises:
        ValueError: `density` is not between 0 and 1, or keeps none or all blocks of a strip;
            `block` is not two positive numbers.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> leaf = Blocks(0.25, block=(32, 32)).encode(jnp.ones((256, 64)))
        >>> jm.nbytes(leaf)  # 4 of 4,096 bytes, and their places
        16388
    """

    density: float = 0.5
    _: dataclasses.KW_ONLY
    block: tuple[int, int] = (32, 32)

    def __post_init__(self):
        check_fields(self, block=_SIZES)
        super().__post_init__()
        object.__setattr__(self, "block", tuple(self.block))
        if len(self.block) != 2 or min(self.block) < 1:
            raise ValueError(f"Blocks takes a block of (outputs, inputs), got {self.block}")

    row_unit = property(lambda self: self.block[0])
    unit = property(lambda self: f"blocks of {self.block[1]} inputs")

    def mask(self, scores, count: Count = codec_count):
        cut = _cut(scores, self.block)
        norms = (cut * cut).sum((-3, -1))  # (*stack, strips, blocks)
        blocks = norms.shape[-1]
        kept = highest(norms, count(blocks, self.kept(blocks)))
        wide = jnp.broadcast_to(kept[..., None, :, None], cut.shape)
        wide = _joined(wide)
        return wide[..., : scores.shape[-2], : scores.shape[-1]]

    def encode_masked(self, matrix, mask, fold, dtype):
        kept = _cut(mask, self.block).any((-3, -1))  # (*stack, strips, blocks)
        places = compressed(kept, kept, self.kept(kept.shape[-1]))[1]
        cut = _cut(matrix, self.block)  # (*stack, strips, outputs, blocks, inputs)
        values = jnp.take_along_axis(cut, places[..., None, :, None], -2)
        values = _joined(values)
        places = narrow_indices(places, kept.shape[-1])
        return BlocksArray(values.astype(dtype), fold, jnp.dtype(dtype), places, self.block[1])


def _cut(matrix: Array, block: tuple[int, int]) -> Array:
    """The matrix (*stack, n, k) as (*stack, strips, outputs, blocks, inputs); zeros fill it up."""
    *stack, n, k = matrix.shape
    padding = [(0, 0)] * len(stack) + [(0, -n % block[0]), (0, -k % block[1])]
    strips, blocks = -(-n // block[0]), -(-k // block[1])
    return jnp.pad(matrix, padding).reshape(*stack, strips, block[0], blocks, block[1])


def _joined(blocks: Array) -> Array:
    """The rows (*stack, n, k) of blocks (*stack, strips, outputs, blocks, inputs)."""
    rows = lax.collapse(blocks, blocks.ndim - 2)
    return lax.collapse(rows, rows.ndim - 3, rows.ndim - 1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class BlocksArray(SparseArray):
    """The kept blocks of each strip: values (*stack, strips · outputs, kept · inputs)."""

    places: Array  # (*stack, strips, kept) uint8 or uint16: which blocks of inputs
    inputs: int = dataclasses.field(metadata=dict(static=True))

    blocks = property(lambda self: -(-self.fold.k // self.inputs))
    outputs = property(lambda self: _rows_of_a_strip(self.values, self.places))

    def rows(self):
        return self._dense(decoded_values(self.values), self.places)[..., : self.fold.n, :]

    def _dense(self, values, places):
        """Rows (*stack, n, k) of values (*stack, n, kept · inputs)."""
        kept, rows = places.shape[-1], _rows_of_a_strip(values, places)
        if not kept:
            return jnp.zeros((*values.shape[:-1], self.fold.k), jnp.float32)
        values = values.reshape(*places.shape[:-1], rows, kept, self.inputs)
        nth = jnp.arange(self.blocks).reshape((1,) * places.ndim + (-1,))
        matches = places[..., None].astype(jnp.int32) == nth  # (*stack, strips, kept, blocks)
        slot = jnp.argmax(matches, -2)[..., None, :, None]
        dense = jnp.take_along_axis(values, slot, -2)
        dense = jnp.where(matches.any(-2)[..., None, :, None], dense, 0.0)
        return _joined(dense)[..., : self.fold.k]

    def slice_rows(self, start, size):
        """A leaf whose strips have one row, so that `start` may be inside a strip."""
        rows = start + jnp.arange(size)
        values = slice_values(self.values, start, size)
        return dataclasses.replace(self, values=values, places=self.places[rows // self.outputs])

    def shard_matrix(self, fold, side, parts):
        if fold.n % self.outputs:
            return NotImplemented
        return self.shard_rows(fold, side, parts, places=self.places)

    def take_rows(self, index):
        flat = index.reshape(-1)
        rows = self._dense(take_values(self.values, flat), self.places[flat // self.outputs])
        return rows.reshape(*index.shape, self.fold.k)

    def matmul(self, x, precision=None):
        return _matmul(x, self, precision=precision)


def _rows_of_a_strip(values: Array, places: Array) -> int:
    """The rows of a strip, given values (*stack, rows, ...) and places (*stack, strips, kept)."""
    return values.shape[-2] // max(places.shape[-2], 1) or 1


def _plain_product(x, leaf, precision):
    """x (m, k) . rows^T: (m, n) f32, by XLA, in the way that is cheaper for so many rows of x."""
    if not at_most(x.shape[0], leaf.outputs):
        decoded = functools.partial(decoded_product, precision=precision)
        return kept_blocks_product(x, leaf, otherwise=decoded)
    gathered = functools.partial(_gathered, precision=precision)
    integers = leaf.values.as_int_array() if isinstance(leaf.values, MatrixLeaf) else None
    if integers is None or leaf.outputs % 8 or not leaf.places.size:
        return gathered(x, leaf)
    by_strips = functools.partial(_by_strips, precision=precision)
    return by_platform(x, leaf, cpu=by_strips, default=gathered, like=product_like(x, leaf))


@differentiated_by(_plain_product, product_like)
def _matmul(x, leaf, *, precision):
    """x (m, k) . rows^T: (m, n) f32, by a kernel on one TPU chip."""
    plain = functools.partial(_plain_product, precision=precision)
    dense_values = isinstance(leaf.values, Array)
    if not dense_values or not supports(
        leaf.outputs, leaf.inputs, leaf.places.shape[-1], x.shape[1]
    ):
        return plain(x, leaf)
    kernel = lambda x, leaf: block_sparse_product(
        x, leaf.values, leaf.places, leaf.inputs, leaf.fold.n, precision
    )
    return on_one_device(kernel, plain, x, leaf, like=product_like(x, leaf))


def _blocks_of_strips(x, leaf):
    """The blocks of x (m, k) that each strip multiplies: (strips, m, kept · inputs)."""
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % leaf.inputs)))
    x = x.reshape(x.shape[0], leaf.blocks, leaf.inputs).swapaxes(0, 1)
    blocks = x[leaf.places]  # (strips, kept, m, inputs): a CPU copies whole rows
    return lax.collapse(blocks.swapaxes(1, 2), 2)


def _by_strips(x, leaf, precision):
    """`_gathered` of values in packed integers, which a CPU multiplies without decoding them."""
    decoded = lambda x, rows: jnp.matmul(
        x, rows.rows().T.astype(x.dtype), precision=precision, preferred_element_type=jnp.float32
    )
    product = functools.partial(integer_rows_product, otherwise=decoded)
    rows = leaf.values.as_int_array().split_rows(len(leaf.places))
    y = jax.vmap(product, out_axes=1)(_blocks_of_strips(x, leaf), rows)
    return lax.collapse(y, 1)[:, : leaf.fold.n]


def _gathered(x, leaf, precision):
    """x (m, k) . rows^T: (m, n) f32; each strip multiplies the blocks of x that it reads."""
    strips, kept = leaf.places.shape
    read = _blocks_of_strips(x, leaf)
    values = decoded_values(leaf.values) if leaf.values.dtype != x.dtype else leaf.values
    values = values if isinstance(values, Array) else decoded_values(values)
    values = values.astype(x.dtype).reshape(strips, leaf.outputs, kept * leaf.inputs)
    dims = (((2,), (2,)), ((0,), (0,)))
    y = lax.dot_general(read, values, dims, precision, preferred_element_type=jnp.float32)
    return lax.collapse(jnp.moveaxis(y, 0, 1), 1)[:, : leaf.fold.n]
