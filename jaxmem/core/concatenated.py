"""Concatenated: weights joined along an axis; x times the whole is x times each part, joined.

A recurrent cell joins the kernels of its gates in every step. Joined as arrays they would be
decoded and written in every step; a product with each part reads its codes.
"""

import dataclasses
from typing import Any, ClassVar, Self

import jax
from jax import Array, lax
from jax.typing import DTypeLike

from .encoded_product import decoded, dot
from .leaf import Encoded, decode, is_encoded


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Concatenated(Encoded):
    """Leaves and arrays of one number of axes, joined along `axis`, inside a lifted function.

    Example:
        >>> import jax.numpy as jnp, jaxmem as jm
        >>> leaf = jm.Int(8).encode(jnp.ones((16, 32)))
        >>> both = Concatenated((leaf, jnp.ones((16, 8))), 1)
        >>> both.shape, both.decode().shape
        ((16, 40), (16, 40))
    """

    recomputed: ClassVar[bool] = False  # each part is, in its own product
    read_as_stored: ClassVar[bool] = True

    parts: tuple[Any, ...]
    axis: int = dataclasses.field(metadata=dict(static=True))

    dtype = property(lambda self: self.parts[0].dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the parts, and the sum of their sizes along `axis`."""
        shape = list(self.parts[0].shape)
        shape[self.axis] = sum(part.shape[self.axis] for part in self.parts)
        return tuple(shape)

    def decode(self) -> Array:
        """The parts as arrays, joined."""
        return lax.concatenate([decode(part) for part in self.parts], self.axis)

    def astype(self, dtype: DTypeLike) -> Self:
        """The leaf with parts of another dtype."""
        return dataclasses.replace(self, parts=tuple(p.astype(dtype) for p in self.parts))

    def transpose(self, axes: tuple[int, ...]) -> Self:
        """The parts transposed, joined along where the axis is then."""
        parts = tuple(part.transpose(axes) for part in self.parts)
        if any(part is NotImplemented for part in parts):
            return NotImplemented
        return Concatenated(parts, axes.index(self.axis))

    def dot(self, x: Array, dims, preferred_element_type=None, precision=None) -> Array:
        """The products with the parts, joined, where the product does not sum over the axis."""
        (_, w_sum), (_, w_batch) = dims
        if self.axis in (*w_sum, *w_batch):
            return NotImplemented
        options = dict(preferred_element_type=preferred_element_type, precision=precision)
        dense = lambda x, w: lax.dot_general(x, w, dims, **options)
        products = []
        for part in self.parts:
            y = dot(x, part, dims, **options) if is_encoded(part) else dense(x, part)
            products.append(decoded(dense, x, part) if y is None else y)
        free = [a for a in range(self.ndim) if a not in (*w_sum, *w_batch)]
        return lax.concatenate(products, products[0].ndim - len(free) + free.index(self.axis))
