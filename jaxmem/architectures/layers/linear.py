"""Linear maps, tables of vectors, and the reshapes between a vector of all heads and the heads.

Products accumulate in f32 and are cast once. Activations have the dtype of the parameters.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array, lax

from ...parallel.sharding_constraints import looked_up


class Linear(nn.Module):
    """`x @ kernel (+ bias)`, with a plain 2-D kernel (in, out).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxmem.architectures.layers.linear import Linear
        >>> y, params = Linear(3).init_with_output(jax.random.key(0), jnp.ones((1, 2, 4)))
        >>> y.shape, params["params"]["kernel"].shape
        ((1, 2, 3), (4, 3))
    """

    features: int
    bias: bool = False

    @nn.compact
    def __call__(self, x: Array, dtype: jnp.dtype | None = None) -> Array:
        shape = (x.shape[-1], self.features)
        kernel = drawn_param(self, "kernel", nn.initializers.lecun_normal(), shape)
        y = product(x, kernel)
        if self.bias:
            y += row(self.param("bias", nn.initializers.zeros, (self.features,)), y)
        return y.astype(dtype or x.dtype)


class Embed(nn.Module):
    """A table of `rows` vectors that are looked up by id; `logits` uses it as a tied head."""

    rows: int
    width: int

    def setup(self):
        init = nn.initializers.normal(self.width**-0.5)
        self.embedding = drawn_param(self, "embedding", init, (self.rows, self.width))

    def __call__(self, ids: Array) -> Array:
        table = looked_up(self.embedding, ids.size)
        return jnp.take(table, ids, axis=0, mode="clip")

    def logits(self, x: Array) -> Array:
        """`x @ embedding.T` in f32."""
        return product(x, self.embedding, axis=1)


def drawn_param(
    module: nn.Module, name: str, init: nn.initializers.Initializer, shape: tuple[int, ...]
) -> Array:
    """A parameter of a module that `init` draws, unless it is there.

    Flax traces what would draw one that is there, for its shape: to trace zeros takes less time.
    """
    is_there = module.has_variable("params", name)
    return module.param(name, nn.initializers.zeros if is_there else init, shape)


def product(x: Array, w: Array, axis: int = 0) -> Array:
    """`x` contracted with axis `axis` of the matrix `w`, accumulated and returned in f32."""
    dims = (((x.ndim - 1,), (axis,)), ((), ()))
    return lax.dot_general(x, w, dims, preferred_element_type=jnp.float32)


def row(v: Array, like: Array) -> Array:
    """The vector `v` (n,) in f32, reshaped to (1, ..., 1, n) with the rank of `like`."""
    return v.astype(jnp.float32).reshape((1,) * (like.ndim - 1) + (-1,))


def scaled(x: Array, factor: float) -> Array:
    """`x` times a number, in its own dtype; `x` itself if the number is 1."""
    return x if factor == 1 else x * jnp.asarray(factor, x.dtype)


def split_heads(x: Array, heads: int) -> Array:
    """Reshapes x (B, T, heads * h) to (B, heads, T, h)."""
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def merge_heads(x: Array) -> Array:
    """Reshapes x (B, heads, T, h) to (B, T, heads * h); it undoes `split_heads`."""
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)
