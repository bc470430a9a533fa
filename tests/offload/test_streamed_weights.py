"""Layers in host memory give the same values, and on a TPU their bytes are the host's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmem as jm
from jaxmem.architectures import llama
from jaxmem.offload.streamed_weights import from_host, layers_on_host

CONFIG = llama.Config(vocab=64, width=128, ffn=256, layers=3, heads=2, kv_heads=2, head_dim=64)
NET, IDS = llama.module(CONFIG), jnp.arange(8, dtype=jnp.int32).reshape(1, 8)


def apply(params, ids):
    return NET.apply({"params": params}, ids)


def stacks(params):
    return [x for x in jax.tree.leaves(params) if x.ndim > 2 and x.shape[-2] >= 32]


@pytest.mark.parametrize("codec", [None, jm.Int(8)], ids=str)
def test_layers_from_the_host_give_what_layers_on_the_device_do(codec):
    params, fn = jax.jit(NET.init)(jax.random.key(0), IDS)["params"], apply
    if codec is not None:
        params, fn = jm.encode(params, jm.choose(params, {"layers/.*kernel": codec})), jm.lift(fn)
    far = layers_on_host(params)
    assert {x.sharding.memory_kind for x in stacks(far)} == {"pinned_host"}
    want = jax.jit(fn)(params, IDS)
    np.testing.assert_allclose(jax.jit(from_host(fn))(far, IDS), want, rtol=1e-5, atol=1e-5)


def test_a_stack_that_no_scan_reads_is_refused():
    w = layers_on_host(jnp.ones((3, 32, 128)))
    with pytest.raises(ValueError, match="no scan reads 1 of 1 stacks"):
        from_host(lambda w, x: x)(w, jnp.ones(32))


@pytest.mark.slow
def test_on_a_tpu_one_layer_at_a_time_is_on_the_device():
    pytest.importorskip("libtpu")
    params = jax.eval_shape(NET.init, jax.random.key(0), IDS)["params"]
    far = layers_on_host(params)
    m = jm.memory(from_host(apply), far, IDS, device="tpu v5e:1x1")
    assert m.host == sum(jm.nbytes(x) for x in stacks(params))
    assert m.arguments < jm.nbytes(params) - m.host + 2**16
    assert m.temp < m.host
