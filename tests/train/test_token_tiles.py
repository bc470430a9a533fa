"""Layers computed for a few tokens at a time: the same gradients, in less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cheap_jit import jit
from flax import linen as nn
from flax import nnx

import jaxmem as jm
from jaxmem.core.token_runs import TokenRun
from jaxmem.train import tiled

WIDTH, HIDDEN, LAYERS, ROWS, TOKENS = 8, 96, 2, 2, 24
X = jax.random.normal(jax.random.key(1), (ROWS, TOKENS, WIDTH))


def random(tree):
    keys = iter(jax.random.split(jax.random.key(0), 99))
    return jax.tree.map(lambda x: jax.random.normal(next(keys), x.shape) / 4, tree)


class Block(nn.Module):
    """Attention, and an MLP whose activation has a derivative of its own."""

    @nn.compact
    def __call__(self, x, _):
        x += nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))
        return x + nn.Dense(WIDTH)(nn.relu(nn.Dense(HIDDEN)(nn.RMSNorm()(x)))), None


def linen():
    options = dict(variable_axes={"params": 0}, split_rngs={"params": True}, length=LAYERS)
    module = nn.scan(Block, **options)()
    params = module.init(jax.random.key(0), X, None)["params"]
    return lambda params, x: module.apply({"params": params}, x, None)[0], params


def nnx_model():
    class Layer(nnx.Module):
        def __init__(self, rngs):
            self.up = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)
            self.down = nnx.Linear(HIDDEN, WIDTH, rngs=rngs)

        def __call__(self, x):
            return x + self.down(nnx.gelu(self.up(x)))

    make = nnx.vmap(lambda key: Layer(nnx.Rngs(key)), in_axes=0)
    graph, params = nnx.split(make(jax.random.split(jax.random.key(0), LAYERS)))

    def apply(params, x):
        layer = lambda x, p: (nnx.merge(graph, p)(x), None)
        return jax.lax.scan(layer, x, params)[0]

    return apply, params


def loop():
    """Layers of a Python loop, with a causal mean over tokens, which no tile has alone."""
    shape = lambda *sizes: jnp.zeros(sizes)
    params = [(shape(WIDTH, HIDDEN), shape(HIDDEN, WIDTH))] * LAYERS

    def apply(params, x):
        for up, down in params:
            seen = jnp.cumsum(x, 1) / jnp.arange(1.0, x.shape[1] + 1)[None, :, None]
            x = x + jnp.split(nn.silu(seen @ jnp.tile(up, (1, 2))), 2, -1)[0] @ down
        return x

    return apply, random(params)


def slopes(fn, params):
    return jit(jax.value_and_grad(lambda p, x: (fn(p, x) ** 2).mean(), (0, 1)))(params, X)


@pytest.mark.parametrize("model", [linen, nnx_model, loop])
def test_tiles_have_the_gradients_of_all_tokens(model):
    fn, params = model()
    want, got = slopes(fn, params), slopes(tiled(fn, 7), params)  # tiles of 6
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, got, want)


@pytest.mark.parametrize("model", [linen, nnx_model])
def test_hidden_numbers_exist_for_one_tile(model):
    fn, params = model()
    x = jax.ShapeDtypeStruct((4, 512, WIDTH), jnp.float32)

    def temp(fn):
        step = jax.grad(lambda p, x: (jm.remat(fn, jm.Remat("full"))(p, x) ** 2).mean())
        return jm.memory(step, params, x).temp

    hidden = 4 * 512 * HIDDEN * 4  # bytes of one array of hidden numbers
    assert temp(tiled(fn, 32)) < temp(fn) - hidden


def test_a_run_ends_where_tokens_mix():
    mixed = lambda x, w: jnp.sin(jnp.cumsum(x, 0) @ w)
    jaxpr = jax.make_jaxpr(mixed)(jnp.ones((6, 4)), jnp.ones((4, 4))).jaxpr
    run = TokenRun.find(jaxpr, {jaxpr.outvars[0]: 0})
    assert [eqn.primitive.name for eqn in run.equations] == ["dot_general", "sin"]


def test_what_has_no_tokens_is_refused():
    with pytest.raises(ValueError, match="tokens is 0, expected at least 1"):
        tiled(jnp.sin, 0)
    with pytest.raises(ValueError, match="has no layers that multiply each token alone"):
        tiled(jnp.sin, 4)(X)
