"""A layer that is read in its stack does what the sliced layer does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxmem as jm
from jaxmem.core.lifting import lift_inference

ROWS = jnp.asarray(np.random.default_rng(0).standard_normal((2, 16), np.float32))
STACK = np.random.default_rng(1).standard_normal((3, 16, 16), np.float32)
ids = jnp.array([5, 0])
BODIES = {
    "a product": lambda x, w: jnp.tanh(x @ w),
    "a transposed product": lambda x, w: jnp.tanh(x @ w.T),
    "heads": lambda x, w: jnp.einsum("bk,khd->bhd", x, w.reshape(16, 4, 4)).reshape(2, 16),
    "a look-up": lambda x, w: x + w[ids],
    "its values": lambda x, w: x + jnp.sin(w)[:2],
}
CODECS = {
    "int4": jm.Int(4, group=8),
    "int8": jm.Int(8),
    "zero points": jm.Int(3, group=8, symmetric=False),
    "quantized scales": jm.DoubleQuant(jm.Int(4, group=8)),
    "quantized offsets": jm.DoubleQuant(jm.Affine(4, group=8)),
    "nf4": jm.Codebook("nf4", group=8),
    "mxfp4": jm.Float("mxfp4"),
    "fp8": jm.Float("e4m3"),
    "bitmask": jm.Bitmask(0.5),
}


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS.keys())
def test_a_scan_over_layers_in_their_stack_is_that_over_slices(codec):
    stack = codec.encode(jnp.asarray(STACK))

    def run(lifted):
        scan = lambda body: lambda w, x: lax.scan(lambda x, w: (body(x, w), None), x, w)[0]
        return jax.jit(lambda w, x: [lifted(scan(body))(w, x) for body in BODIES.values()])

    for y, expected in zip(run(lift_inference)(stack, ROWS), run(jm.lift)(stack, ROWS)):
        np.testing.assert_allclose(y, expected, 2e-5, 2e-5)


def test_gradients_through_a_layer_in_its_stack_are_those_through_the_slice():
    scan = lambda w, x: lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0].sum()
    stack = jm.Int(4, group=8).encode(jnp.asarray(STACK))
    grads = [
        jax.jit(jax.grad(lift(scan), argnums=(0, 1), allow_int=True))(stack, ROWS)
        for lift in (lift_inference, jm.lift)
    ]
    (w, x), (expected_w, expected_x) = grads
    np.testing.assert_allclose(w.scale, expected_w.scale, 2e-3, 2e-3)
    np.testing.assert_allclose(x, expected_x, 1e-5, 1e-5)


@pytest.mark.parametrize(
    "codec", [jm.Int(8), jm.Int(8, group=128), jm.Float("e4m3")], ids=["int8", "groups", "fp8"]
)
def test_a_tpu_reads_stored_numbers_in_their_stack(codec):
    """Sliced from the stack first, a v6e moved 1.66 times these weights, with copies of a layer."""
    pytest.importorskip("libtpu")
    shape = lambda *dims: jax.ShapeDtypeStruct(dims, jnp.bfloat16)
    encoded = lambda *dims: jax.eval_shape(lambda w: codec.encode(w, (1,)), shape(*dims))
    up, down = (4, 4096, 14336), (4, 14336, 4096)
    params = encoded(*up), encoded(*up), encoded(*down)

    def layer(x, weights):
        gate, up, down = weights
        return x + (jax.nn.silu(x @ gate) * (x @ up)) @ down, None

    run = lift_inference(lambda params, x: lax.scan(layer, x, params)[0])
    memory = jm.memory(run, params, shape(16, 4096), device="tpu v6e:1x1")
    assert memory.temp < 1e6
    assert memory.traffic < 1.01 * jm.nbytes(params)


@pytest.mark.parametrize(
    ("codec", "barriers"),
    [
        (jm.Int(8), 0),
        (jm.Int(8, group=8), 0),
        (jm.Int(4), 1),
        (jm.Dynamic(jm.Int(8)), 0),
        (jm.Dynamic(jm.Int(4)), 1),
    ],
    ids=str,
)
def test_only_a_layer_that_is_decoded_is_behind_a_barrier_on_a_tpu(codec, barriers):
    run = lift_inference(lambda w, x: lax.scan(lambda x, w: (x @ w, None), x, w)[0])
    traced = jax.jit(run).trace(codec.encode(jnp.asarray(STACK)), ROWS)
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("optimization_barrier") == barriers
