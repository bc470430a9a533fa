"""StackLayer: one layer of a stack of encoded matrices, which a product reads where it lies."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from .matrix_leaf import MatrixLeaf, MatrixLeafWrapper


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StackLayer(MatrixLeafWrapper):
    """Layer `index` of a stack of matrices (layers, n, k), which is sliced only where it must be.

    A scan over the layers copies each slice that a compiled product takes, since XLA gives such a
    product whole arrays: the weights are then read twice and written once. A leaf whose
    `reads_in_stack` is true has a product that takes the stack and the index. A gradient with
    respect to a stack would be as large as the stack in each layer, so training slices.
    """

    inner: MatrixLeaf  # the stack
    index: Array  # () int32

    read_as_stored = True
    batch_shape = property(lambda self: ())

    def unwrapped(self):
        # behind a barrier, without which XLA may decode all layers at once
        return lax.optimization_barrier(self.slice_of_stack())

    def slice_of_stack(self) -> MatrixLeaf:
        """The layer without a barrier, for a product that does not decode it.

        A TPU then reads the layer in the stack; behind a barrier it may copy each layer first.
        """
        at_index = lambda a: lax.dynamic_index_in_dim(a, self.index, 0, keepdims=False)
        return jax.tree.map(at_index, self.inner)

    def in_stack(self):
        return self.inner, self.index

    def decode(self):
        return self.unwrapped().decode()

    def interleaved_rows(self):
        return self.unwrapped().interleaved_rows()

    def prepare_for_cpu(self, x):
        return self.unwrapped().prepare_for_cpu(x)

    def matmul(self, x, precision=None):
        return self.inner.layer_matmul(x, self, precision)

    def cut(self, fold):
        return self.unwrapped().cut(fold)

    def reshape(self, shape):
        fold = self.fold.regrouped(self.shape, shape)
        return fold if fold is NotImplemented else self.with_fold(fold)


def layers_in_stack(leaf: Any) -> tuple[Array, Callable[[Array], StackLayer]] | None:
    """(the indices of layers, for a scan; a function from an index to a layer that is not sliced).

    None where the leaf is no stack of matrices whose product can read a layer where it lies.

    Example:
        >>> import jax, jax.numpy as jnp, jaxmem as jm
        >>> stack = jm.Int(8).encode(jnp.ones((4, 16, 8)))
        >>> indices, layer = layers_in_stack(stack)
        >>> indices.tolist(), layer(indices[2]).shape
        ([0, 1, 2, 3], (16, 8))
        >>> layers_in_stack(jm.Bitmask(0.5).encode(jnp.ones((4, 16, 8)))) is None
        True
    """
    if not (isinstance(leaf, MatrixLeaf) and leaf.reads_in_stack and len(leaf.batch_shape) == 1):
        return None
    return jnp.arange(*leaf.batch_shape, dtype=jnp.int32), lambda index: StackLayer(leaf, index)
