"""DoubleQuantArray: a quantized weight whose scales are quantized too (Dettmers et al., 2023)."""

import dataclasses
from typing import Any

import jax
from jax import lax

from ..core.leaf import is_encoded
from ..core.matrix_leaf import MatrixLeafWrapper
from ..core.stack_layer import StackLayer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DoubleQuantArray(MatrixLeafWrapper):
    """A leaf `inner` whose `scale` (and `low`) are encoded; products decode these first."""

    inner: Any

    bits = property(lambda self: self.inner.bits)
    reads_in_stack = property(lambda self: self.inner.reads_in_stack)
    low = property(lambda self: getattr(self.unwrapped(), "low", None))

    def unwrapped(self):
        parts = {name: getattr(self.inner, name, None) for name in ("scale", "low")}
        return dataclasses.replace(
            self.inner, **{name: part.decode() for name, part in parts.items() if is_encoded(part)}
        )

    def layer_matmul(self, x, layer, precision=None):
        # The scales of this layer alone are decoded. They are a stack of one layer, and an index
        # beyond the end of a stack is that of its last layer.
        cut = lambda a: lax.dynamic_slice_in_dim(a, layer.index, 1, 0)
        names = [name for name in ("scale", "low") if hasattr(self.inner, name)]
        parts = {name: jax.tree.map(cut, getattr(self.inner, name)) for name in names}
        stack = dataclasses.replace(self, inner=dataclasses.replace(self.inner, **parts))
        stack = stack.unwrapped()
        return stack.layer_matmul(x, StackLayer(stack, layer.index), precision)

    def moved_layers(self):
        return self.unwrapped().moved_layers()

    def scales(self):
        return self.unwrapped().scales()

    def as_int_array(self):
        return self.unwrapped().as_int_array()
