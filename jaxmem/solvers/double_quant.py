"""DoubleQuant: the scales of a quantized weight, quantized too (Dettmers et al., 2023)."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from ..codecs import Float, Int
from ..codecs.quantized_scales import DoubleQuantArray
from ..codecs.scaled import Scaled
from ..core.leaf import is_encoded
from .solver import Solver, rounding

BYTES = Float("e4m3", group=256)


@dataclasses.dataclass(frozen=True)
class DoubleQuant(Scaled):
    """Encodes with `codec`, then its scales with `scales`, along the output channels.

    The codes are rounded to what the scales have become, so that little of their error is left.
    What a group of `Affine` starts at is encoded too. A 16-bit scale for each 64 weights (0.25 bits
    a weight) takes 0.126 bits.

    Floats of 8 bits, in the paper's blocks of 256, hold a channel as well as the others down to
    2^-15 of the largest of its block. Integers have one step for all of a block: where channels
    differ 500 times, nothing is left of the small ones. The paper's mean is not taken off, which
    would do the same to them.

    A solver may be inside or outside: `DoubleQuant(GPTQ(codec))` is `GPTQ(DoubleQuant(codec))`.

    Raises:
        TypeError: the leaf of `codec` has no scales of a float type.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> nf4, w = jm.Codebook("nf4", group=64), jnp.ones((512, 256))
        >>> jm.nbytes(nf4.encode(w)), jm.nbytes(jm.DoubleQuant(nf4).encode(w))
        (69632, 67600)
        >>> w = jnp.tile(jnp.array([[1.0, 1e-3]]), (64, 1))
        >>> small = lambda s: float(jm.DoubleQuant(nf4, s).encode(w).decode()[0, 1])
        >>> round(small(BYTES), 4), round(small(jm.Int(8)), 4)
        (0.001, 0.0)
    """

    codec: Any
    scales: Any = BYTES

    def __post_init__(self):
        if not isinstance(rounding(self.codec), Int | Scaled):
            raise TypeError(f"{self.codec} leaves no float scales to encode")

    group = property(lambda self: rounding(self.codec).group)

    def encode(self, w: Any, axes: tuple[int, ...] = (-2,), stats: Any = None) -> Any:
        if isinstance(self.codec, Solver) and not is_encoded(w):
            return _inside(self.codec, self.scales).encode(w, axes, stats)
        return super().encode(w, axes, stats)

    def spans(self, matrix, stats=None):
        return self.codec.spans(matrix, stats)

    def range(self, low, high):
        return rounding(self.codec).range(low, high)

    def snap(self, values, scale, zero=None):
        return rounding(self.codec).snap(values, scale, zero)

    def round(self, matrix, scale, zero, fold, dtype):
        codec = rounding(self.codec)
        first = codec.round(matrix, scale, zero, fold, dtype)
        parts = {name: getattr(first, name, None) for name in ("scale", "low")}
        parts = {name: part for name, part in parts.items() if part is not None}
        if not jnp.issubdtype(first.scale.dtype, jnp.floating):
            raise TypeError(f"{self.codec} leaves no float scales to encode")
        parts = {name: self.scales.encode(part, (-1,)) for name, part in parts.items()}
        held = DoubleQuantArray(dataclasses.replace(first, **parts)).unwrapped()
        zero = held.low.mT.astype(jnp.float32) if "low" in parts else zero
        again = codec.round(matrix, held.scales().mT, zero, fold, dtype)
        return DoubleQuantArray(dataclasses.replace(again, **parts))


def _inside(codec: Any, scales: Any) -> Any:
    """The solver, of a codec whose scales are encoded."""
    if not isinstance(codec, Solver):
        return DoubleQuant(codec, scales)
    return dataclasses.replace(codec, codec=_inside(codec.codec, scales))
