"""The NNX block computes what the linen block computes, from the same parameters."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx
from reference_models import reference

import jaxmem as jm
from jaxmem.architectures import llama, llama_nnx

member = functools.cache(functools.partial(reference, family=llama))


@pytest.mark.parametrize("index", [0, -1])
@pytest.mark.parametrize("name", ["llama3", "qwen2", "qwen3", "gemma3"])
def test_the_nnx_block_equals_the_linen_block(name, index):
    config, params, _ = member(name)
    x = jax.random.normal(jax.random.key(0), (2, 9, config.width))
    stacks = params["layers"], llama.per_layer(config)
    one, layer = jax.tree.map(lambda a: a[index], stacks)
    (expected, _), _ = jax.jit(llama.Block(config).apply)({"params": one}, (x, None), layer, 0)
    ours = nnx.jit(lambda b, x: b(x, layer))(llama_nnx.block(config, one), x)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_encoded_parameters_run_alike_in_both():
    config, params, _ = member("qwen3")
    x = jax.random.normal(jax.random.key(0), (2, 9, config.width))
    one, layer = jax.tree.map(lambda a: a[0], (params["layers"], llama.per_layer(config)))
    graph, state = nnx.split(llama_nnx.block(config, one))
    linen = lambda p, x: llama.Block(config).apply({"params": p}, (x, None), layer, 0)[0][0]
    run = lambda s, x: nnx.merge(graph, s)(x, layer)

    def encoded(fn, p):
        plan, uses = jm.choose(p, {".*kernel": jm.Int(8)}), jm.uses(fn, p, x)
        return jax.jit(lambda p: jm.lift(fn)(jm.encode(p, plan, uses=uses), x))(p)

    np.testing.assert_allclose(encoded(run, state), encoded(linen, one), atol=1e-5)


def test_parameters_of_another_block_are_refused():
    config, params, _ = member("qwen2")
    with pytest.raises(ValueError, match="attn"):
        llama_nnx.block(config, params["layers"])
