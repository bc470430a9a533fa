"""DoubleQuant: the scales of a quantized weight, quantized too (Dettmers et al., 2023)."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from ..codecs import Float
from ..codecs.double_quantized_scales import DoubleQuantArray
from ..codecs.scaled import Scaled
from ..core.arguments import check_fields
from ..core.codec import CODEC, RowEncoder, common_unit, row_encoder, row_unit
from ..core.leaf import is_encoded
from .solver import Solver, rounding_codec

E4M3 = Float("e4m3", group=256)  # a byte a scale


@dataclasses.dataclass(frozen=True)
class DoubleQuant(Scaled):
    """Encodes with `codec`, then encodes its scales with `scales`, along the output channels.

    The weights are rounded a second time, to the decoded scales, which removes most of the scales'
    error. The lower bounds of `Affine`'s groups are encoded like its scales. A 16-bit scale per 64
    weights takes 0.25 bits a weight; encoded, it takes 0.126 bits.

    8-bit floats, in the paper's blocks of 256, encode the scale of each channel with the same
    relative precision, down to 2^-15 of the largest scale in its block. Integers have one step
    size for a block: a scale 500 times smaller than the largest becomes zero. The paper subtracts
    the mean of the scales first; that is not done here, because it would harm small scales in the
    same way.

    A solver may be inside or outside: `DoubleQuant(GPTQ(codec))` is `GPTQ(DoubleQuant(codec))`.

    Raises:
        TypeError: the leaf of `codec` has no scales of a float dtype.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> nf4, w = jm.Codebook("nf4", group=64), jnp.ones((512, 256))
        >>> jm.nbytes(nf4.encode(w)), jm.nbytes(jm.DoubleQuant(nf4).encode(w))
        (69632, 67600)
        >>> w = jnp.tile(jnp.array([[1.0, 1e-3]]), (64, 1))
        >>> small = lambda s: float(jm.DoubleQuant(nf4, s).encode(w).decode()[0, 1])
        >>> round(small(E4M3), 4), round(small(jm.Int(8)), 4)
        (0.001, 0.0)
    """

    codec: Any
    scales: Any = E4M3

    def __post_init__(self):
        check_fields(self, codec=CODEC, scales=CODEC)
        if not isinstance(rounding_codec(self.codec), Scaled):
            raise TypeError(f"{self.codec} leaves no float scales to encode")

    group = property(lambda self: rounding_codec(self.codec).group)

    def encode(self, w: Any, axes: tuple[int, ...] = (-2,), stats: Any = None) -> Any:
        if isinstance(self.codec, Solver) and not is_encoded(w):
            return _push_inside(self.codec, self.scales).encode(w, axes, stats)
        return super().encode(w, axes, stats)

    @property
    def row_unit(self) -> int | None:
        """The output channels whose scales are one group: a multiple of them is independent."""
        return common_unit(row_unit(self.codec), getattr(self.scales, "group", None))

    def row_encoder(self, w, axes, stats):
        if isinstance(self.codec, Solver):
            return row_encoder(_push_inside(self.codec, self.scales), w, axes, stats)
        encode = lambda rows, start: self.encode(rows, axes, stats)
        return self.row_unit and RowEncoder(encode, self.row_unit)

    def spans(self, matrix, stats=None):
        return self.codec.spans(matrix, stats)

    def range(self, low, high):
        return rounding_codec(self.codec).range(low, high)

    def snap(self, values, scale, zero=None):
        return rounding_codec(self.codec).snap(values, scale, zero)

    def round(self, matrix, scale, zero, fold, dtype):
        codec = rounding_codec(self.codec)
        # round with plain scales, and encode those of the leaf
        first = codec.round(matrix, scale, zero, fold, dtype)
        parts = {name: getattr(first, name, None) for name in ("scale", "low")}
        parts = {name: part for name, part in parts.items() if part is not None}
        if not jnp.issubdtype(first.scale.dtype, jnp.floating):
            raise TypeError(f"{self.codec} leaves no float scales to encode")
        parts = {name: self.scales.encode(part, (-1,)) for name, part in parts.items()}
        # round again with the decoded scales
        decoded = DoubleQuantArray(dataclasses.replace(first, **parts)).unwrapped()
        zero = decoded.low.mT.astype(jnp.float32) if "low" in parts else zero
        again = codec.round(matrix, decoded.scales().mT, zero, fold, dtype)
        return DoubleQuantArray(dataclasses.replace(again, **parts))


def _push_inside(codec: Any, scales: Any) -> Any:
    """`codec`, where the innermost codec of its solvers is wrapped in `DoubleQuant`."""
    if not isinstance(codec, Solver):
        return DoubleQuant(codec, scales)
    return dataclasses.replace(codec, codec=_push_inside(codec.codec, scales))
