"""DoubleQuantArray: a quantized weight whose scales are quantized too (Dettmers et al., 2023)."""

import dataclasses
from typing import Any

import jax

from ..core.leaf import is_encoded
from ..core.matrix_leaf import MatrixLeafWrapper


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DoubleQuantArray(MatrixLeafWrapper):
    """A leaf `inner` whose `scale` (and `low`) are encoded; products decode these first."""

    inner: Any

    bits = property(lambda self: self.inner.bits)
    low = property(lambda self: getattr(self.unwrapped(), "low", None))

    def unwrapped(self):
        parts = {name: getattr(self.inner, name, None) for name in ("scale", "low")}
        return dataclasses.replace(
            self.inner, **{name: part.decode() for name, part in parts.items() if is_encoded(part)}
        )

    def moved_layers(self):
        return self.unwrapped().moved_layers()

    def scales(self):
        return self.unwrapped().scales()

    def as_int_array(self):
        return self.unwrapped().as_int_array()
