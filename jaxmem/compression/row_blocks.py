"""encode_in_blocks: a weight encoded one layer or some rows at a time, in one program.

A codec's temporaries are several f32 copies of what it encodes. A loop over small blocks keeps them
small, so the program needs the weight, the encoded leaf and little more.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..codecs import Cast, Smallest
from ..core import row_slices
from ..core.codec import Codec, ties_layers
from ..core.fold import matrix_shape
from ..core.layer_encoding import encode_layer
from ..core.row_slices import as_bits, from_bits, slice_along
from ..core.strided_weight import StridedWeight


def encode_in_blocks(codec: Codec, w: Any, axes: tuple[int, ...], stats: Any) -> Any:
    """`codec.encode(w, axes, stats)`; a weight of many numbers is encoded block by block.

    The layers of a stack are encoded one after another, unless the codec ties them. A layer is
    encoded some rows at a time where the codec can.

    Example:
        >>> import jax, jaxmem as jm
        >>> w = jax.ShapeDtypeStruct((4096, 4096), jnp.float32)
        >>> encode = jax.jit(lambda w: encode_in_blocks(jm.KMeans(3), w, (-2,), None))
        >>> memory = encode.lower(w).compile().memory_analysis()
        >>> memory.temp_size_in_bytes < jm.nbytes(w) / 4  # without blocks 9 times the weight
        True
    """
    if isinstance(codec, Smallest):  # which of its codecs that is depends on the whole weight
        codec = codec.smallest(w, axes, stats)
    rounds_numbers = isinstance(codec, Cast)  # each by itself, with no temporaries
    if w.size <= row_slices.BLOCK_WEIGHTS or ties_layers(codec) or rounds_numbers:
        if isinstance(w, StridedWeight):
            by_slices = getattr(codec, "encode_by_slices", None)
            if ties_layers(codec) and by_slices:
                return by_slices(w, axes, stats)
            w = w.dense()
        return codec.encode(w, axes, stats)
    axes = tuple(a - w.ndim if a >= 0 else a for a in axes)
    if len(matrix_shape(w, axes)) > 2:
        return _encode_layers(codec, w, axes, stats)
    return encode_layer(codec, w, axes, stats)


def _encode_layers(codec: Codec, w: Any, axes: tuple[int, ...], stats: Any) -> Any:
    """The leaf of a stack, in a loop over its layers."""

    def layer(args):
        i, stats = args
        w_of_layer = slice_along(w, i, 1, 0).reshape(w.shape[1:])
        return jax.tree.map(as_bits, encode_in_blocks(codec, w_of_layer, axes, stats))

    shapes = jax.eval_shape(lambda: codec.encode(w, axes, stats))
    leaf = lax.map(layer, (jnp.arange(w.shape[0]), stats))
    return jax.tree.map(from_bits, leaf, shapes)
