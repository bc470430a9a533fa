"""DoubleQuantArray: a quantized weight whose scales are quantized too (Dettmers et al., 2023)."""

import dataclasses
import functools
from typing import Any

import jax
from jax import Array, lax

from ..core.leaf import is_encoded
from ..core.matrix_leaf import MatrixLeaf, MatrixLeafWrapper
from ..core.stack_layer import StackLayer
from ..cpu_kernels.coded_scales import has_coded_scales
from ..cpu_kernels.integer_rows import integer_rows_product
from ..kernels.dispatch import by_platform, differentiated_by, product_like


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DoubleQuantArray(MatrixLeafWrapper):
    """A leaf `inner` whose `scale` (and `low`) are encoded; products decode these first.

    A CPU's compiled product of integers decodes the scales of K-quants itself.
    """

    inner: Any

    bits = property(lambda self: self.inner.bits)
    reads_in_stack = property(lambda self: self.inner.reads_in_stack)
    low = property(lambda self: getattr(self.unwrapped(), "low", None))

    def unwrapped(self):
        parts = {name: getattr(self.inner, name, None) for name in ("scale", "low")}
        return dataclasses.replace(
            self.inner, **{name: part.decode() for name, part in parts.items() if is_encoded(part)}
        )

    def coded(self) -> MatrixLeaf:
        """The leaf whose scales are codes, as the compiled product of integers takes it."""
        return self.inner

    def matmul(self, x, precision=None):
        product = _coded_matmul if has_coded_scales(self.inner) else _decoded_matmul
        return product(x, self, precision=precision)

    def layer_matmul(self, x, layer, precision=None):
        product = _coded_matmul if has_coded_scales(self.inner) else _decoded_matmul
        return product(x, layer, precision=precision)

    def moved_layers(self):
        return self.unwrapped().moved_layers()

    def scales(self):
        return self.unwrapped().scales()

    def as_int_array(self):
        return self.unwrapped().as_int_array()


def _decoded_matmul(x: Array, leaf: Any, *, precision: Any) -> Array:
    """x (m, k) times the rows of a leaf or of a `StackLayer`, whose scales are decoded first."""
    stack, index = leaf.in_stack()
    if index is None:
        return leaf.unwrapped().matmul(x, precision)
    # The scales of this layer alone are decoded. They are a stack of one layer, and an index
    # beyond the end of a stack is that of its last layer.
    cut = lambda a: lax.dynamic_slice_in_dim(a, index, 1, 0)
    names = [name for name in ("scale", "low") if hasattr(stack.inner, name)]
    parts = {name: jax.tree.map(cut, getattr(stack.inner, name)) for name in names}
    stack = dataclasses.replace(stack, inner=dataclasses.replace(stack.inner, **parts))
    stack = stack.unwrapped()
    return stack.layer_matmul(x, StackLayer(stack, index), precision)


@functools.partial(jax.jit, static_argnames="precision")
@differentiated_by(_decoded_matmul, product_like)
def _coded_matmul(x, leaf, *, precision):
    """`_decoded_matmul`, in which a CPU's compiled product decodes the scales."""
    decoded = functools.partial(_decoded_matmul, precision=precision)
    on_cpu = functools.partial(integer_rows_product, otherwise=decoded)
    return by_platform(x, leaf, cpu=on_cpu, default=decoded, like=product_like(x, leaf))
