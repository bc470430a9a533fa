"""abstract_leaf: the shapes of a weight's encoded leaf, traced once for equal weights."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from ..codecs import Int
from ..codecs.integer import IntArray
from ..codecs.packing import WIDTHS
from ..codecs.scaled import Scaled
from ..core.fold import Fold, matrix_shape
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
    if type(codec) is Int:
        return _of_bits(_of_bytes(codec.group, codec.symmetric, axes, shape, dtype), codec.bits)
    if isinstance(codec, Int):  # of a class of the user, which may encode in another way
        return _of_bits(_traced(dataclasses.replace(codec, bits=8), axes, shape, dtype), codec.bits)
    return _traced(codec, axes, shape, dtype)


@functools.lru_cache(maxsize=2**14)  # thousands of leaves have a few shapes
def _traced(codec, axes, shape, dtype) -> Any:
    return jax.eval_shape(lambda w: codec.encode(w, axes), jax.ShapeDtypeStruct(shape, dtype))


@functools.lru_cache(maxsize=2**14)
def _of_bytes(group, symmetric, axes, shape, dtype) -> IntArray:
    """The shapes of a leaf of `Int` with 8 bits, without tracing how it finds scales."""
    weight = jax.ShapeDtypeStruct(shape, dtype)
    *stack, n, k = matrix_shape(weight, axes)
    group, fold = min(group or k, k) or 1, Fold.of(weight, axes)
    shapes = lambda *sides, dtype: jax.ShapeDtypeStruct((*stack, *sides), dtype)
    codes = (shapes(n, k, dtype=jnp.int8),)
    scale = shapes(-(-k // group), n, dtype=jnp.float16)
    zero = None if symmetric else (shapes(-(-k // group), n, dtype=jnp.int8),)
    return IntArray(codes, scale, zero, 8, group, fold, dtype)


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
