"""What the layers of a decoder of one kind compute: outputs, queries, keys, values and scores."""

import jax
import jax.numpy as jnp

from jaxmem.architectures.attention.positions import per_layer, rotate_positions
from jaxmem.architectures.decoder import Block
from jaxmem.architectures.layers.linear import split_heads


def layers_of(model, params, ids):
    """Of each layer: its output, and its queries, keys and values before positions."""
    c = model.config
    options = {"mutable": ["intermediates"]}
    options["capture_intermediates"] = lambda module, _: module.name in ("q", "k", "v")

    def layer(x, inputs):
        weights, values = inputs
        ((x, _), _), seen = Block(c).apply({"params": weights}, (x, None), values, 0, **options)
        q, k, v = (seen["intermediates"]["attn"][name]["__call__"][0] for name in "qkv")
        return x, (x, q, k, v)

    x = params["embed"]["embedding"][ids]
    return jax.lax.scan(layer, x, (params["layers"], per_layer(c, ids.shape[1])))[1]


def scores_of(model, q, k):
    """What the heads of all layers see before their softmax, (layers, heads, T, T)."""
    c, group = model.config, model.config.heads // model.config.kv_heads

    def one(inputs):
        q, k, values = inputs
        q, k = (split_heads(x, n) for x, n in ((q, c.heads), (k, c.kv_heads)))
        q, k = (rotate_positions(x, c, values, 0) for x in (q, k))
        return jnp.einsum("hqd,hkd->hqk", q[0], jnp.repeat(k[0], group, 0)) / c.head_dim**0.5

    return jax.lax.map(one, (q, k, per_layer(c, q.shape[2])))
