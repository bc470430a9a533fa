"""encode_in_class: small weights of many shapes encoded by a few programs, with the same bits.

To trace and compile a program takes about 100 ms, to encode a small weight 1 ms. So the matrix of
a small weight is padded with zeros until its sides are powers of two, and the leaf of the padded
matrix is cut to the weight's own rows and columns. NumPy pads and cuts: JAX would compile programs
for that, too, one for each shape.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.codec import Codec
from ..core.fold import Fold
from ..core.padded import padded_encoder

SHORTEST_SIDE = 64


def has_class(codec: Codec, w: Any) -> bool:
    """Whether the leaf of a weight in memory can be cut from the leaf of its padded matrix.

    The codec must have a `padded_encoder`. A weight that is committed to a device has no class: its
    leaf would be on the default device.

    Example:
        >>> import jaxmem as jm
        >>> has_class(jm.Int(4), jnp.ones((40, 24))), has_class(jm.Coo(0.1), jnp.ones((40, 24)))
        (True, False)
    """
    return padded_encoder(codec) is not None and not (isinstance(w, jax.Array) and w.committed)


def encode_in_class(run: Callable, codec: Codec, axes: tuple[int, ...], w: Any) -> tuple:
    """`run(codec, axes, w, None)`, computed by its program for the padded matrix.

    `run` also takes the number that the `padded_encoder` of the codec must know. It returns a tuple
    whose first item is the leaf. The other items must be equal for a weight and its padded matrix.

    Example:
        >>> import jaxmem as jm
        >>> run = lambda codec, axes, w, stats, number: (codec.encode(w, axes, stats),)
        >>> [leaf] = encode_in_class(run, jm.Int(4), (-2,), jnp.ones((40, 24)))
        >>> leaf.shape, jm.nbytes(leaf)
        ((40, 24), 528)
    """
    matrix, fold = Fold.from_weight(np.asarray(w), axes)
    *stack, n, k = matrix.shape
    encoder = padded_encoder(codec)
    number = np.int32(encoder.number(fold))
    columns = -(-_power_of_two(k) // encoder.unit) * encoder.unit
    padded = np.zeros((*stack, _power_of_two(n), columns), jnp.result_type(w.dtype))
    padded[..., :n, :k] = matrix
    leaf, *others = run(codec, (-1,), padded, None, number)
    leaf = encoder.cut(jax.tree.map(np.asarray, leaf), fold)
    # A copy, since a part would keep the whole array in memory.
    return jax.tree.map(lambda array: jax.device_put(array.copy()), leaf), *others


def _power_of_two(side: int) -> int:
    """The power of two, of `SHORTEST_SIDE` or more, that holds a side."""
    return max(SHORTEST_SIDE, 1 << (side - 1).bit_length())
