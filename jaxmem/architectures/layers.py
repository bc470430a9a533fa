"""The pieces every model here is built from: linear, row look-up, norm, attention.

Dots accumulate in f32 and are cast once; norms and softmax are in f32. The dtype of the
parameters is the dtype of the computation.
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
    """A table of `rows` vectors: looked up by id, or multiplied by as a tied head."""

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
    """(x - mean) / sqrt(var + eps) * scale + bias, over the last axis."""

    eps: float

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        y = x.astype(jnp.float32)
        y = y - y.mean(-1, keepdims=True)
        y = y * lax.rsqrt((y * y).mean(-1, keepdims=True) + self.eps)
        return (y * row(scale, y) + row(bias, y)).astype(x.dtype)


def product(x: Array, w: Array, axis: int = 0) -> Array:
    """`x` contracted with axis `axis` of the matrix `w`, accumulated and returned in f32."""
    dims = (((x.ndim - 1,), (axis,)), ((), ()))
    return lax.dot_general(x, w, dims, preferred_element_type=jnp.float32)


def row(v: Array, like: Array) -> Array:
    """A vector in f32 with the rank of `like`, to meet its last axis."""
    return v.astype(jnp.float32).reshape((1,) * (like.ndim - 1) + (-1,))


def rms_norm(x: Array, scale: Array, eps: float, offset: float = 0.0) -> Array:
    """x / sqrt(mean(x²) + eps) * (offset + scale), over the last axis (Zhang & Sennrich, 2019)."""
    y = x.astype(jnp.float32)
    y = y * lax.rsqrt((y * y).mean(-1, keepdims=True) + eps)
    return (y * (row(scale, y) + offset)).astype(x.dtype)


def split_heads(x: Array, heads: int) -> Array:
    """(B, T, heads * h) to (B, heads, T, h)."""
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def merge_heads(x: Array) -> Array:
    """(B, heads, T, h) to (B, T, heads * h)."""
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)


def rope(x: Array, frequencies: Array, position: Array | int) -> Array:
    """Turns the halves of each head of x (B, heads, T, h) by position * frequency."""
    steps = position + jnp.arange(x.shape[2], dtype=jnp.int32)
    angle = steps.astype(jnp.float32)[None, None, :, None] * frequencies[None, None, None, :]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def attend(q: Array, k: Array, v: Array, allowed: Array, scale: float) -> Array:
    """softmax(scale * q kᵀ) v where `allowed`, each query head beside the k/v head it shares.

    The queries of one group are rows of one product, so keys and values are never repeated.

    Shapes: q (B, H, T, h); k, v (B, K, S, h) with K dividing H; allowed broadcasts to
    (B, K, H/K, T, S).
    """
    both = ((0, 1), (0, 1))

    def scores(rows):
        return lax.dot_general(rows, k, (((3,), (3,)), both), preferred_element_type=jnp.float32)

    def mix(shares):
        shares = shares.astype(v.dtype)
        return lax.dot_general(shares, v, (((3,), (2,)), both), preferred_element_type=jnp.float32)

    return attend_by(scores, mix, q, k.shape[1], allowed, scale)


def attend_by(scores, mix, q: Array, kv_heads: int, allowed: Array, scale: float) -> Array:
    """`attend` where `scores` multiplies rows of queries with keys, and `mix` shares with values.

    A single row is doubled: XLA for TPU makes of a lone row a sum of products, which wants another
    layout of the whole cache and copies it (GPT-2, batch 8, v5e, jax 0.10.2: 806 MB against none).

    Shapes: scores takes (B, K, R, h) and gives (B, K, R, S) f32, mix the other way round.
    """
    batch, heads, steps, width = q.shape
    rows = q.reshape(batch, kv_heads, -1, width)  # (B, K, G*T, h)
    if lone := rows.shape[2] == 1:
        rows = jnp.broadcast_to(rows, (batch, kv_heads, 2, width))
    found = scores(rows)
    found = found.reshape(batch, kv_heads, -1, steps, found.shape[-1]) * scale
    shares = jax.nn.softmax(jnp.where(allowed, found, jnp.finfo(jnp.float32).min), axis=-1)
    out = mix(shares.reshape(batch, kv_heads, -1, shares.shape[-1]))
    out = out[:, :, :1] if lone else out
    return out.astype(q.dtype).reshape(batch, heads, steps, width)


def causal(steps: int, length: int, position: Array | int, window: Array | int) -> Array:
    """(1, 1, 1, steps, length): key `s` is seen from `position + t` if 0 <= distance < window."""
    shape = (1, 1, 1, steps, length)
    distance = position + lax.broadcasted_iota(jnp.int32, shape, 3)
    distance -= lax.broadcasted_iota(jnp.int32, shape, 4)
    return (distance >= 0) & (distance < window)


def keep_layout(k: Array, v: Array) -> tuple[Array, Array]:
    """Keys and values on their way to a cache, called before they are split into heads.

    Without this the layout that XLA for TPU likes for the product of one step spreads to the
    cache, which is then copied in and out whole: at 1B, batch 8, length 4096 in bf16, 2,148 MB of
    temporaries (twice the cache) against none (v5e, jax 0.10.2).
    """
    return lax.optimization_barrier((k, v))


def write(cache: dict, layer: Array, position: Array | int, k: Array, v: Array):
    """Puts the keys and values of `layer` at `position`; the cache and all that layer holds.

    The cache is (layers, B, K, S, h) and travels in the carry of the scan over layers, so that
    XLA updates it in place: as a scanned input and output it would be copied whole.

    Raises:
        ValueError: more steps than the cache is long.
    """
    length = cache["k"].shape[3]
    if k.shape[2] > length:
        raise ValueError(f"{k.shape[2]} steps for a cache of length {length}")
    at = (layer, 0, 0, position, 0)
    put = lambda old, new: lax.dynamic_update_slice(old, new[None].astype(old.dtype), at)
    get = lambda new: lax.dynamic_index_in_dim(new, layer, 0, keepdims=False)
    cache = {"k": put(cache["k"], k), "v": put(cache["v"], v)}
    return cache, get(cache["k"]).astype(k.dtype), get(cache["v"]).astype(v.dtype)
