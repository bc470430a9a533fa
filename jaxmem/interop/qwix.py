"""to_qwix, from_qwix: convert between leaves of `Int` and qwix's QArray, integers unchanged.

A QArray is (qvalue − zero point) · scale, with scales that divide each axis of the weight evenly.
"""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ..codecs.double_quantized_scales import DoubleQuantArray
from ..codecs.integer import IntArray
from ..codecs.packing import pack, unpack
from ..core.arguments import FLOAT_TYPE, Kind, takes
from ..core.fold import Fold

if TYPE_CHECKING:
    from qwix import QArray

_QARRAY = Kind("a QArray of qwix", lambda x: hasattr(x, "qvalue") and hasattr(x, "scale"))
_BITS = {"int2": 2, "int4": 4, "int8": 8}


@takes()
def to_qwix(leaf: IntArray) -> "QArray":
    """The QArray with the numbers of an `Int` leaf: int4 up to 4 bits, else int8; f32 scales.

    Raises:
        TypeError: `leaf` is not an `Int` leaf.
        ValueError: the last group is short, or groups span several summed axes.
        ImportError: qwix is missing; the message names the extra.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> array = jm.interop.to_qwix(jm.Int(4, group=16).encode(jnp.ones((32, 8))))
        >>> array.qvalue.dtype, array.qvalue.shape, array.scale.shape
        (dtype(int4), (32, 8), (2, 8))
    """
    QArray = _qwix().QArray
    leaf = leaf.unwrapped() if isinstance(leaf, DoubleQuantArray) else leaf
    if not isinstance(leaf, IntArray):
        raise TypeError(f"to_qwix takes a leaf of Int, got a {type(leaf).__name__}")
    fold, groups, n = leaf.fold, *leaf.scale.shape[-2:]
    summed = (groups,) if len(fold.summed) == 1 else fold.summed and (1,) * len(fold.summed)
    if groups > 1 and (len(fold.summed) > 1 or fold.k % leaf.group):
        raise ValueError(
            f"a QArray divides each axis evenly: groups of {leaf.group} do not divide {fold.summed}"
        )
    coarse = Fold(fold.kept, summed, fold.order)
    dtype = jnp.int4 if leaf.bits <= 4 else jnp.int8
    middle = 2 ** (leaf.bits - 1) if leaf.bits < 8 else 0  # 8 bits are held as code − 128
    codes = unpack(leaf.codes, leaf.bits, n, axis=-2) - middle
    zero = None
    if leaf.zero is not None:
        zero = coarse.unfold((leaf.zeros() - middle).mT).astype(dtype)
    return QArray(fold.unfold(codes).astype(dtype), coarse.unfold(leaf.scales().mT), zero)


@takes(array=_QARRAY, dtype=FLOAT_TYPE)
def from_qwix(array: "QArray", *, dtype: DTypeLike | None = None) -> IntArray:
    """The `Int` leaf with the integers of a QArray; it decodes to `dtype`, by default the scale's.

    The axes that share scales are the summed ones. Scales become f16 where that is exact.

    Raises:
        TypeError: the numbers are not integers of 2, 4 or 8 bits.
        ValueError: every weight has its own scale, or several axes have groups.

    Example:
        >>> import jax, jaxmem as jm, qwix
        >>> w = jax.random.normal(jax.random.key(0), (32, 8))
        >>> array = qwix.quantize(w, "int4", channelwise_axes=(1,), tiled_axes={0: 16})
        >>> leaf = jm.interop.from_qwix(array)
        >>> leaf.bits, leaf.group, bool((leaf.decode() == qwix.dequantize(array)).all())
        (4, 16, True)
    """
    q, scale, zero = array.qvalue, array.scale, array.zero_point
    bits = _BITS.get(jnp.dtype(q.dtype).name)
    if bits is None or jnp.dtype(array.qtype) != q.dtype:
        raise TypeError(f"from_qwix takes int2, int4 and int8, got {array.qtype} in {q.dtype}")
    axes = tuple(i - q.ndim for i in range(q.ndim) if scale.shape[i] != q.shape[i])
    grouped = [a for a in axes if scale.shape[a] > 1]
    if not axes or (grouped and len(axes) > 1):
        raise ValueError(
            f"scales of shape {scale.shape} for {q.shape}: expected groups of one axis"
        )
    matrix, fold = Fold.from_weight(q.astype(jnp.int16) + 2 ** (bits - 1), axes)
    scales, _ = Fold.from_weight(scale, axes)  # (*stack, n, groups)
    codes = pack(matrix.astype(jnp.uint8), bits, axis=-2)
    zeros = None
    if zero is not None:
        zeros, _ = Fold.from_weight(
            _spread(zero.astype(jnp.int16) + 2 ** (bits - 1), scale.shape), axes
        )
        zeros = pack(zeros.mT.astype(jnp.uint8), bits, axis=-1)
    group = fold.k // scales.shape[-1]
    metadata = (bits, group, fold, jnp.dtype(dtype or scale.dtype))
    return IntArray(codes, _narrow(scales.mT), zeros, *metadata)


def _spread(zero: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Repeats zero points to the shape of the scales."""
    for axis, (size, scale_size) in enumerate(zip(zero.shape, shape)):
        if scale_size % size:
            raise ValueError(f"zero points of shape {zero.shape} for scales of {shape}")
        zero = jnp.repeat(zero, scale_size // size, axis)
    return zero


def _narrow(scale: jax.Array) -> jax.Array:
    """The scales in f16 if that is exact, else unchanged; traced scales are unchanged."""
    half = scale.astype(jnp.float16)
    if isinstance(scale, jax.core.Tracer):
        return scale
    return half if bool((half.astype(scale.dtype) == scale).all()) else scale


def _qwix() -> Any:
    """The module qwix, or an ImportError that names the extra."""
    try:
        import qwix
    except ModuleNotFoundError as error:
        raise ImportError(f'to_qwix wants {error.name}: pip install "jaxmem[qwix]"') from error
    return qwix
