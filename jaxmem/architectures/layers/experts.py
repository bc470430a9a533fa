"""Experts: y = Σ over the chosen experts e of weight_e * MLP_e(x), without dropping a token.

Experts are stacks of matrices (experts, in, out). A few tokens read their experts one by one; many
tokens are sorted by expert, and each matrix multiplies a segment of rows. On a mesh whose axis
`expert` divides the stacks, each device computes its own experts, and the results are added.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import PartitionSpec as P

from ...core.traced_mesh import mesh_of
from ...kernels.dispatch import at_most
from ...kernels.ragged_matmul import ragged_matmul
from ...parallel.axes import batch_spec
from ..configs.decoder_config import Config
from .feed_forward import MLP, activate
from .linear import Linear, product
from .routing import route

FEW_PRODUCTS = 16  # tokens times experts of a token, up to which experts are read one by one
Stacks = dict[
    str, tuple[Array, Array | None]
]  # {"gate": (kernels, biases), "up": ..., "down": ...}


class Experts(nn.Module):
    """A mixture of experts in place of an MLP, as `config.mixture` says."""

    config: Config

    @nn.compact
    def __call__(self, x: Array) -> Array:
        c, m = self.config, self.config.mixture
        router = Linear(m.experts, m.router_bias, name="router")
        zeros = nn.initializers.zeros
        correction = self.param("correction", zeros, (m.experts,)) if m.correction else None
        stacks = ExpertStacks(c, name="experts")()
        rows = x.reshape(-1, c.width)
        weights, experts = route(router(rows, jnp.float32), m, correction)
        shape = (*x.shape[:-1], m.per_token)
        mix = functools.partial(_mix, c)
        y = _over_mesh(mix, x, weights.reshape(shape), experts.reshape(shape), stacks)
        if m.shared_ffn:
            shared = MLP(c, m.shared_ffn, name="shared")(x)
            if m.shared_gate:
                shared = shared * jax.nn.sigmoid(Linear(1, name="shared_gate")(x))
            y = y + shared
        return y


class ExpertStacks(nn.Module):
    """The matrices of all experts of a layer."""

    config: Config

    @nn.compact
    def __call__(self) -> Stacks:
        c, m = self.config, self.config.mixture
        sizes = {"gate": (c.width, m.ffn), "up": (c.width, m.ffn), "down": (m.ffn, c.width)}
        return {
            name: Stack(m.experts, *size, m.expert_bias, name=name)()
            for name, size in sizes.items()
        }


class Stack(nn.Module):
    """The kernels (experts, in, out) of a linear of every expert, and biases (experts, out)."""

    experts: int
    inputs: int
    outputs: int
    bias: bool

    @nn.compact
    def __call__(self) -> tuple[Array, Array | None]:
        init = nn.initializers.lecun_normal(in_axis=-2, out_axis=-1, batch_axis=(0,))
        kernel = self.param("kernel", init, (self.experts, self.inputs, self.outputs))
        shape = (self.experts, self.outputs)
        return kernel, self.param("bias", nn.initializers.zeros, shape) if self.bias else None


def _mix(config: Config, x: Array, weights: Array, experts: Array, stacks: Stacks) -> Array:
    """The sum over the experts of each token; ids that are no expert of `stacks` add nothing.

    Shapes: x (B, T, width); weights, experts (B, T, per_token); the result (B, T, width).
    """
    m, count = config.mixture, stacks["gate"][0].shape[0]
    rows = x.reshape(-1, x.shape[-1])
    weights, experts = weights.reshape(-1, m.per_token), experts.reshape(-1, m.per_token)
    weights = jnp.where((experts >= 0) & (experts < count), weights, 0.0)
    few = at_most(rows.shape[0] * m.per_token, FEW_PRODUCTS)
    y = (_one_by_one if few else _by_segments)(config, rows, weights, experts, stacks)
    return y.astype(x.dtype).reshape(x.shape)


def _one_by_one(
    config: Config, rows: Array, weights: Array, experts: Array, stacks: Stacks
) -> Array:
    """The mixture (N, width) f32 of few tokens: of the stacks it reads only the chosen experts.

    A loop in the program, or one look-up of all chosen matrices, makes XLA for TPU read or copy
    all experts of a layer. These slices are read where they lie (v5e, jax 0.10.2).
    """
    last = stacks["gate"][0].shape[0] - 1
    out = []
    for n in range(rows.shape[0]):
        x, total = rows[n : n + 1], jnp.zeros((1, rows.shape[1]), jnp.float32)
        for k in range(config.mixture.per_token):
            expert = jnp.clip(experts[n, k], 0, last)
            take = lambda w: lax.dynamic_index_in_dim(w, expert, 0, keepdims=False)  # noqa: B023

            def linear(x, name, take=take):
                kernel, bias = stacks[name]
                y = product(x, take(kernel))
                return y if bias is None else y + take(bias).astype(jnp.float32)[None]

            total = total + _expert(config, x, weights[n, k][None, None], linear)
        out.append(total)
    return jnp.concatenate(out)


def _by_segments(
    config: Config, rows: Array, weights: Array, experts: Array, stacks: Stacks
) -> Array:
    """The mixture (N, width) f32 of many tokens, sorted by expert."""
    per_token, count = config.mixture.per_token, stacks["gate"][0].shape[0]
    ids = experts.reshape(-1)
    ids = jnp.where((ids >= 0) & (ids < count), ids, count)  # experts of other devices come last
    order = jnp.argsort(ids)
    sizes = (ids[:, None] == jnp.arange(count, dtype=jnp.int32)[None]).sum(0, dtype=jnp.int32)
    sorted_ids = jnp.minimum(ids[order], count - 1)

    def linear(x, name):
        kernel, bias = stacks[name]
        y = _ragged_dot(x, kernel, sizes)
        return y if bias is None else y + jnp.take(bias, sorted_ids, axis=0).astype(jnp.float32)

    shares = weights.reshape(-1)[order][:, None]
    y = _expert(config, rows[order // per_token], shares, linear)
    y = jnp.where(shares != 0, y, 0.0)  # rows after all segments hold any number
    y = jnp.zeros_like(y).at[order].set(y, unique_indices=True)
    return y.reshape(-1, per_token, y.shape[-1]).sum(1)


def _expert(config: Config, x: Array, weight: Array, linear: Callable) -> Array:
    """The share (M, width) f32 of an expert for rows x, which it weighs by (M, 1).

    `linear(x, name)` multiplies rows by the expert's matrix of that name.
    """
    m = config.mixture
    if m.scales_inputs:
        x = (x.astype(jnp.float32) * weight).astype(x.dtype)
    gate, up = linear(x, "gate"), linear(x, "up")
    if m.swiglu_limit:
        gate = jnp.minimum(gate, m.swiglu_limit)
        up = jnp.clip(up, -m.swiglu_limit, m.swiglu_limit)
        hidden = (up + 1) * gate * jax.nn.sigmoid(m.swiglu_alpha * gate)
    else:
        hidden = activate(gate, config) * up
    y = linear(hidden.astype(x.dtype), "down")
    return y if m.scales_inputs else y * weight


def _ragged_dot(x: Array, w: Array, sizes: Array) -> Array:
    """Segments of rows times a matrix each, in f32; only XLA for TPU has a product of its own."""
    ragged = functools.partial(lax.ragged_dot, preferred_element_type=jnp.float32)
    return lax.platform_dependent(x, w, sizes, tpu=ragged, default=ragged_matmul)


def _over_mesh(mix: Callable, x: Array, weights: Array, experts: Array, stacks: Stacks) -> Array:
    """`mix`, by each device for the experts that it holds, if a mesh divides them."""
    mesh = mesh_of((x, stacks))
    parts = 1 if mesh is None else mesh.shape.get("expert", 1)
    count = stacks["gate"][0].shape[0]
    if parts == 1 or count % parts:
        return mix(x, weights, experts, stacks)

    def local(x, weights, experts, stacks):
        first = lax.axis_index("expert") * (count // parts)
        return lax.psum(mix(x, weights, experts - first, stacks), "expert")

    batch = P(*batch_spec(mesh, x.shape[:-1]))
    of_stacks = jax.tree.map(lambda _: P("expert"), stacks)
    specs = (batch, batch, batch, of_stacks)
    run = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=batch, check_vma=False)
    return run(x, weights, experts, stacks)
