"""remat finds the layers of a Python loop, and changes their memory but none of their values."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cheap_jit import jit
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

import jaxmem as jm
from jaxmem.core.traced_function import Traced

D, F, LAYERS = 16, 32, 6
KEEP_BARRIERS = {"xla_disable_hlo_passes": "cse_barrier_expander"}  # as on TPUs and GPUs


def loop(ws, x):
    for a, b in ws:
        x += checkpoint_name(jnp.tanh(jnp.sin(x @ a)), "out") @ b
    return x


def abstract(rows):
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    return [(shape(D, F), shape(F, D))] * LAYERS, shape(rows, D)


@pytest.fixture(scope="module")
def arrays():
    keys = iter(jax.random.split(jax.random.key(0), 2 * LAYERS + 1))
    return jax.tree.map(lambda x: jax.random.normal(next(keys), x.shape) / 4, abstract(8))


def gradient(fn, *args):
    return jit(jax.grad(lambda *args: jnp.square(fn(*args)).sum()))(*args)


POLICIES = [jm.Remat(kind) for kind in ("full", "dots", "nested")] + [jm.Remat("named", ("out",))]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_gradients_are_those_without_it(policy, arrays):
    got, want = (gradient(fn, *arrays) for fn in (jm.remat(loop, policy), loop))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, want)


def test_policies_keep_fewer_bytes():
    temp = {}
    for kind in ("none", "full", "nested"):
        fn = jm.remat(loop, jm.Remat(kind))
        step = jax.jit(jax.grad(lambda *args, fn=fn: jnp.square(fn(*args)).sum()))
        compiled = step.lower(*abstract(2048)).compile(compiler_options=KEEP_BARRIERS)
        temp[kind] = compiled.memory_analysis().temp_size_in_bytes
    assert temp["none"] > temp["full"] > temp["nested"]
    assert temp["full"] < 0.5 * temp["none"]


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        x += nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))
        return x + nn.Dense(D)(nn.gelu(nn.Dense(F)(nn.LayerNorm()(x))))


class Transformer(nn.Module):
    @nn.compact
    def __call__(self, ids):
        x = nn.Embed(32, D)(ids)
        for _ in range(3):
            x = Block()(x)
        return nn.Dense(32)(nn.LayerNorm()(x))


class Stack(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(D, D, rngs=rngs) for _ in range(3)])

    def __call__(self, x):
        for layer in self.layers:
            x = jnp.tanh(layer(x))
        return x


def checkpoints(fn, *args):
    return str(jax.make_jaxpr(fn)(*args)).count("prevent_cse=True")


def test_the_layers_of_linen_and_nnx_modules_are_found():
    ids = jnp.zeros((2, 8), jnp.int32)
    params = jax.eval_shape(Transformer().init, jax.random.key(0), ids)
    policy = jm.Remat("full")
    plain, run = jax.jit(Transformer().apply), jm.remat(jax.jit(Transformer().apply), policy)
    assert checkpoints(run, params, ids) == 4  # and what of the head is as in a layer
    assert jax.eval_shape(run, params, ids) == jax.eval_shape(plain, params, ids)
    graph, state = nnx.split(Stack(nnx.Rngs(0)))
    run = jm.remat(lambda state, x: nnx.merge(graph, state)(x), policy)
    assert checkpoints(run, state, jnp.ones((4, D))) == 3


def test_a_loop_of_layers_with_a_scan_in_each_is_cut_at_the_layers(arrays):
    def with_scans(ws, x):
        for a, b in ws:
            rows = (x @ a).reshape(2, -1, F)
            x = jax.lax.map(lambda row, b=b: jnp.tanh(row) @ b, rows).reshape(x.shape)
        return x

    assert checkpoints(jm.remat(with_scans, jm.Remat("full")), *arrays) == LAYERS
    traced = Traced.of(lambda ws, x: jax.lax.scan(lambda x, w: (x @ w, None), x, ws)[0], *CHAIN)
    assert traced.scans_weights and not traced.layers


CHAIN = jnp.ones((3, D, D)), jnp.ones((2, D))


@pytest.mark.parametrize(
    ("fn", "policy", "message"),
    [
        (lambda w, x: x @ w[0], jm.Remat("full"), "found no layers in .*nn.remat or nnx.remat"),
        (lambda w, x: x @ w[0], jm.Remat("named", ("out",)), "no tensor has the name 'out'"),
        (
            lambda w, x: jax.checkpoint(lambda x: jax.lax.map(jnp.sin, x))(x @ w[0]),
            jm.Remat("full"),
            "found no layers",
        ),
        (
            lambda w, x: checkpoint_name(x @ w[0], "mlp") @ w[1],
            jm.Remat("offload", ("out",)),
            "name 'out', expected one of: mlp",
        ),
    ],
)
def test_a_policy_that_would_change_nothing_is_refused(fn, policy, message):
    with pytest.raises(ValueError, match=message):
        jm.remat(fn, policy)(*CHAIN)


def test_encoded_weights_of_a_loop_are_decoded_in_their_layer(arrays):
    ws, x = arrays
    enc = jm.encode(ws, jm.choose(ws, {".*": jm.Int(8)}))
    got = jm.remat(jm.lift(loop), jm.Remat("full"))(enc, x)
    np.testing.assert_allclose(got, jm.lift(loop)(enc, x), rtol=1e-4, atol=1e-4)
    assert checkpoints(jm.remat(jm.lift(loop), jm.Remat("full")), enc, x) >= LAYERS
