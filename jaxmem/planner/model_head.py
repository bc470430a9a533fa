"""A language model cut before its head, so that a step computes only the logits that it uses."""

import jax
import jax.numpy as jnp
from jax import Array

from ..architectures.decoder import scaled_logits
from ..architectures.layers.linear import row
from ..core.leaf import is_encoded
from ..core.lifting import dot_general, lift, lift_inference
from ..models.model import family


def hidden(config, params, ids, *cache, slices_layers=False, **where):
    """The input of the model's head (B, T, k); with a cache, (that input, the new cache).

    `where` are the segments and positions of ids that are several texts in a row. With a cache,
    layers of encoded weights are read in their stacks, unless `slices_layers`.
    """
    net = family(config).module(config)
    name = "embed_out" if getattr(config, "embed_width", 0) else "final_norm"
    last = lambda module, method: module.name == name and method == "__call__"
    options = {"capture_intermediates": last, "mutable": ["intermediates"]}

    def run(params, ids, *cache, **where):
        # XLA does not compute the logits, because nothing uses them.
        out, captured = net.apply({"params": params}, ids, *cache, **where, **options)
        x = captured["intermediates"][name]["__call__"][0]
        return (x, out[1]) if cache else x

    encoded = any(map(is_encoded, jax.tree.leaves(params, is_leaf=is_encoded)))
    lifted = lift_inference if cache and not slices_layers else lift
    return (lifted(run) if encoded else run)(params, ids, *cache, **where)


def head_matrix(config, params):
    """The matrix of the logits, and its axis that is summed over."""
    tied = config.tied
    return (params["embed"]["embedding"], 1) if tied else (params["head"]["kernel"], 0)


def logits_of(config, params, x: Array) -> Array:
    """The logits (B, T, vocab) in f32 of x (B, T, width)."""
    head, axis = head_matrix(config, params)
    dims = (((2,), (axis,)), ((), ()))
    products = dot_general(x, head, dims, preferred_element_type=jnp.float32)
    return finished(config, params, products)


def finished(config, params, products: Array) -> Array:
    """The logits (B, T, vocab) in f32 of their products, with bias, factor and soft cap."""
    if config.family == "gpt2":
        return products
    if config.head_bias:
        products = products + row(params["head"]["bias"], products)
    return scaled_logits(products, config)
