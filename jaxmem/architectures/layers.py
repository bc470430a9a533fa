"""The layers that every model here is built from: linear, embedding, norms, heads, rotation.

Products accumulate in f32 and are cast once; norms are computed in f32. Activations have the dtype
of the parameters.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

from ..parallel.constraints import looked_up


class Linear(nn.Module):
    """`x @ kernel (+ bias)`, with a plain 2-D kernel (in, out).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxmem.architectures.layers import Linear
        >>> y, params = Linear(3).init_with_output(jax.random.key(0), jnp.ones((1, 2, 4)))
        >>> y.shape, params["params"]["kernel"].shape
        ((1, 2, 3), (4, 3))
    """

    features: int
    bias: bool = False

    @nn.compact
    def __call__(self, x: Array, dtype: jnp.dtype | None = None) -> Array:
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape)
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
        self.embedding = self.param("embedding", init, (self.rows, self.width))

    def __call__(self, ids: Array) -> Array:
        table = looked_up(self.embedding, ids.size)
        return jnp.take(table, ids, axis=0, mode="clip")

    def logits(self, x: Array) -> Array:
        """`x @ embedding.T` in f32."""
        return product(x, self.embedding, axis=1)


class LayerNorm(nn.Module):
    """(x - mean) / sqrt(var + eps) * scale (+ bias), over the last axis."""

    eps: float
    bias: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        y = x.astype(jnp.float32)
        y = y - y.mean(-1, keepdims=True)
        y = y * lax.rsqrt((y * y).mean(-1, keepdims=True) + self.eps)
        y = y * row(scale, y)
        if self.bias:
            y += row(self.param("bias", nn.initializers.zeros, (x.shape[-1],)), y)
        return y.astype(x.dtype)


class GeluMLP(nn.Module):
    """down(gelu(up(x))) with `ffn` neurons; GELU is approximated by tanh."""

    ffn: int
    width: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        y = Linear(self.ffn, bias=True, name="up")(x)
        y = jax.nn.gelu(y, approximate=True)
        return Linear(self.width, bias=True, name="down")(y)


def check_positions(ids: Array, position: Array | int, rows: int) -> None:
    """Refuses tokens that a table of `rows` positions does not reach, when a program is traced.

    A look-up past the table would read its last row. A `position` that is traced counts as 0.

    Raises:
        ValueError: there are more tokens than positions.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxmem.architectures.layers import check_positions
        >>> check_positions(jnp.zeros((1, 8), int), 10, rows=16)
        Traceback (most recent call last):
        ValueError: 8 tokens from position 10, in a model of 16 positions; use fewer tokens
    """
    length, start = ids.shape[1], position if isinstance(position, int) else 0
    if isinstance(length, int) and start + length > rows:
        raise ValueError(
            f"{length} tokens from position {start}, in a model of {rows} positions; "
            "use fewer tokens"
        )


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


def rms_norm(x: Array, scale: Array, eps: float, offset: float = 0.0) -> Array:
    """x / sqrt(mean(x²) + eps) * (offset + scale), over the last axis (Zhang & Sennrich, 2019)."""
    y = x.astype(jnp.float32)
    y = y * lax.rsqrt((y * y).mean(-1, keepdims=True) + eps)
    return (y * (row(scale, y) + offset)).astype(x.dtype)


def split_heads(x: Array, heads: int) -> Array:
    """Reshapes x (B, T, heads * h) to (B, heads, T, h)."""
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def merge_heads(x: Array) -> Array:
    """Reshapes x (B, heads, T, h) to (B, T, heads * h); it undoes `split_heads`."""
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)


def rope(x: Array, frequencies: Array, position: Array | int, interleaved: bool = False) -> Array:
    """Rotary positions (Su et al., 2021): rotates pairs in each head of x (B, heads, T, h).

    Channel i and channel i + h / 2 are a pair, or with `interleaved` channels 2i and 2i + 1. Its
    angle is position * frequencies[i], in radians; `position` is that of the first of the T tokens,
    and `frequencies` is (h / 2,).
    """
    steps = position + jnp.arange(x.shape[2], dtype=jnp.int32)
    angle = steps.astype(jnp.float32)[None, None, :, None] * frequencies[None, None, None, :]
    if interleaved:
        return _rope_interleaved(x, angle)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def _rope_interleaved(x: Array, angle: Array) -> Array:
    """Rotates channels 2i and 2i + 1 of x by angle[..., i].

    The channels stay on the last axis, since an axis of 2 would fill 2 of a TPU's 128 lanes.
    """
    angle = jnp.repeat(angle, 2, axis=-1)
    y = x.astype(jnp.float32)
    is_first = (jnp.arange(x.shape[-1], dtype=jnp.int32) % 2 == 0)[None, None, None, :]
    partner = jnp.where(is_first, -jnp.roll(y, -1, -1), jnp.roll(y, 1, -1))
    return (y * jnp.cos(angle) + partner * jnp.sin(angle)).astype(x.dtype)
