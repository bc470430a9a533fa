"""DoubleQuant: the scales of a quantized weight, quantized too (Dettmers et al., 2023)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ..folding import Wrapped
from ..leaf import is_encoded


@dataclasses.dataclass(frozen=True)
class DoubleQuant:
    """Encodes with `codec`, then its scales with `scales`, along the output channels.

    With scales of 8 bits in groups of 256, a 16-bit scale for each 64 weights (0.25 bits a weight)
    takes 0.126 bits, and 0.002 for its own.

    Raises:
        TypeError: the leaf of `codec` has no scales of a float type.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> w = jnp.ones((512, 256))
        >>> nf4, int8 = jm.Codebook("nf4", group=64), jm.Int(8, group=256, symmetric=False)
        >>> jm.nbytes(nf4.encode(w)), jm.nbytes(jm.DoubleQuant(nf4, int8).encode(w))
        (69632, 67608)
    """

    codec: Any
    scales: Any

    def encode(self, w: Any, axes: tuple[int, ...] = (-2,), stats: Any = None) -> Any:
        if is_encoded(w):
            return w.map(self.encode)
        inner = self.codec.encode(w, axes, stats)
        scale = getattr(inner, "scale", None)
        if scale is None or not jnp.issubdtype(scale.dtype, jnp.floating):
            raise TypeError(f"{self.codec} leaves no float scales to encode")
        scale = self.scales.encode(scale, (-1,))
        return DoubleQuantArray(dataclasses.replace(inner, scale=scale))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DoubleQuantArray(Wrapped):
    """A leaf whose scale (and least weight) is an encoded leaf; it decodes those and does as it."""

    inner: Any

    def opened(self):
        parts = {name: getattr(self.inner, name, None) for name in ("scale", "low")}
        return dataclasses.replace(
            self.inner, **{name: part.decode() for name, part in parts.items() if is_encoded(part)}
        )
