"""The Llama block as a `flax.nnx` module, with the formula and parameter names of llama.py.

This module shows that encoded parameters run in NNX as they do in linen; models use llama.py.
"""

import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict
from jax import Array

from ..kv_cache.attention_masks import causal
from ..kv_cache.attention_scores import attend
from .attention.positions import rope
from .configs.decoder_config import Config
from .layers.feed_forward import activate
from .layers.linear import merge_heads, split_heads
from .layers.norms import rms_norm


class Norm(nnx.Module):
    """RMS norm; its gain is `norm_offset + scale`, where Gemma's `norm_offset` is 1."""

    def __init__(self, width: int, config: Config):
        self.scale = nnx.Param(jnp.full((width,), 1.0 - config.norm_offset))
        self.eps, self.offset = config.eps, config.norm_offset

    def __call__(self, x: Array) -> Array:
        return rms_norm(x, self.scale[...], self.eps, self.offset)


class Attention(nnx.Module):
    """Grouped-query causal attention with rotary positions, without a cache."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        c = self.config = config
        linear = lambda k, n, bias: nnx.Linear(k, n, use_bias=bias, rngs=rngs)
        self.q = linear(c.width, c.heads * c.head_dim, c.qkv_bias)
        self.k = linear(c.width, c.kv_heads * c.head_dim, c.qkv_bias)
        self.v = linear(c.width, c.kv_heads * c.head_dim, c.qkv_bias)
        self.out = linear(c.heads * c.head_dim, c.width, False)
        if c.qk_norm:
            self.q_norm, self.k_norm = Norm(c.head_dim, c), Norm(c.head_dim, c)

    def __call__(self, x: Array, layer: dict) -> Array:
        c = self.config
        q = split_heads(self.q(x), c.heads)
        k, v = split_heads(self.k(x), c.kv_heads), split_heads(self.v(x), c.kv_heads)
        if c.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = (rope(y, layer["frequencies"], 0) for y in (q, k))
        allowed = causal(q.shape[2], k.shape[2], 0, layer["window"])
        return self.out(merge_heads(attend(q, k, v, allowed, c.query_scale or c.head_dim**-0.5)))


class MLP(nnx.Module):
    """down(act(gate(x)) * up(x))."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        self.config = config
        self.gate = nnx.Linear(config.width, config.ffn, use_bias=False, rngs=rngs)
        self.up = nnx.Linear(config.width, config.ffn, use_bias=False, rngs=rngs)
        self.down = nnx.Linear(config.ffn, config.width, use_bias=False, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.down(activate(self.gate(x), self.config) * self.up(x))


class Block(nnx.Module):
    """One layer: maps x (B, T, width) to (B, T, width); `layer` is a slice of `llama.per_layer`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxmem.architectures import llama, llama_nnx
        >>> config = llama.Config(
        ...     vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8
        ... )
        >>> block = nnx.eval_shape(lambda: llama_nnx.Block(config, rngs=nnx.Rngs(0)))
        >>> nnx.state(block)["mlp"]["up"]["kernel"].shape
        (32, 48)
    """

    def __init__(self, config: Config, *, rngs: nnx.Rngs):
        c = self.config = config
        if c.family != "llama":
            raise ValueError(f"the configuration is of family {c.family!r}, expected llama")
        self.attn, self.mlp = Attention(c, rngs), MLP(c, rngs)
        self.attn_norm, self.mlp_norm = Norm(c.width, c), Norm(c.width, c)
        if c.post_norms:
            self.attn_post_norm, self.mlp_post_norm = Norm(c.width, c), Norm(c.width, c)

    def __call__(self, x: Array, layer: dict) -> Array:
        y = self.attn(self.attn_norm(x), layer)
        x = x + (self.attn_post_norm(y) if self.config.post_norms else y)
        y = self.mlp(self.mlp_norm(x))
        return x + (self.mlp_post_norm(y) if self.config.post_norms else y)


def block(config: Config, params: dict) -> Block:
    """The block that holds one layer of the linen model's `params["layers"]`.

    `params` is the nested dict of one layer; its arrays are not copied. Parameters have the same
    names in both models, so a plan or a rule for one model fits the other.

    Raises:
        ValueError: `params` has other paths or shapes than this block.
    """
    new = nnx.eval_shape(lambda: Block(config, rngs=nnx.Rngs(0)))
    expected = {"/".join(map(str, p)): v.shape for p, v in nnx.to_flat_state(nnx.state(new))}
    shapes = {path: x.shape for path, x in flatten_dict(params, sep="/").items()}
    if shapes != expected:
        wrong = sorted(shapes.items() ^ expected.items())
        raise ValueError(f"the parameters differ from this block's at {wrong[0][0]!r}")
    nnx.update(new, params)
    return new
