"""abstract_leaf: the shapes of a weight's encoded leaf, traced once for equal weights."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from ..codecs import Int
from ..codecs.packing import WIDTHS
from ..codecs.scaled import Scaled
from ..solvers import GPTQ, HQQ, Search
from ..solvers.solver import rounding_codec


def abstract_leaf(codec: Any, axes: tuple[int, ...], shape: tuple[int, ...], dtype: Any) -> Any:
    """The leaf of `codec.encode` without stats, with a ShapeDtypeStruct for each array.

    A solver that finds numbers for the leaf of another codec is not traced, but that codec is.

    Raises:
        ValueError: a weight of this shape cannot take the codec.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> abstract_leaf(jm.Search(jm.Int(8)), (-2,), (8, 16), jnp.dtype("float32")).scale.shape
        (1, 16)
    """
    inner = rounding_codec(codec) if isinstance(codec, Search | GPTQ | HQQ) else codec
    codec = inner if isinstance(inner, Scaled) else codec
    if isinstance(codec, Int):
        of_bytes = _traced(dataclasses.replace(codec, bits=8), axes, shape, dtype)
        return _of_bits(of_bytes, codec.bits)
    return _traced(codec, axes, shape, dtype)


@functools.lru_cache(maxsize=2**14)  # thousands of leaves have a few shapes
def _traced(codec, axes, shape, dtype) -> Any:
    return jax.eval_shape(lambda w: codec.encode(w, axes), jax.ShapeDtypeStruct(shape, dtype))


def _of_bits(leaf: Any, bits: int) -> Any:
    """The shapes of a leaf of `Int` with so many bits, from those with 8: codes of a byte each."""
    widths = WIDTHS[bits]

    def fields(code: Any, axis: int) -> tuple[Any, ...]:
        shape, dtype = list(code.shape), code.dtype if bits == 8 else jnp.uint8
        lengths = (-(-shape[axis] * width // 8) for width in widths)
        cut = lambda length: (*shape[:axis], length, *shape[axis:][1:])
        return tuple(jax.ShapeDtypeStruct(cut(length), dtype) for length in lengths)

    zero = leaf.zero and fields(leaf.zero[0], -1)
    return dataclasses.replace(leaf, codes=fields(leaf.codes[0], -2), zero=zero, bits=bits)
