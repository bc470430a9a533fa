"""Weights that a function joins are multiplied part by part, as gates of a recurrent cell are."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cheap_jit import jit

import jaxmem as jm

X = jax.random.normal(jax.random.key(1), (3, 16))
IDS = jnp.arange(10).reshape(2, 5)
INT8 = jm.Int(8)


def leaf(*shape, key=0):
    return INT8.encode(jax.random.normal(jax.random.key(key), shape))


class LM(nn.Module):
    """A recurrent language model."""

    cell: str

    @nn.compact
    def __call__(self, ids):
        x = nn.Embed(16, 8)(ids)
        return nn.Dense(16)(nn.RNN(getattr(nn, self.cell)(8))(x))


@functools.cache
def model(cell):
    net = LM(cell)
    params = jit(net.init)(jax.random.key(0), IDS)["params"]
    return jm.models.from_flax(net, params, context=8)


JOINED = {
    "along outputs": lambda v, w: X @ jnp.concatenate([v, w], 1),
    "with an array": lambda v, w: X @ jnp.concatenate([v, jnp.ones((16, 3)), w], 1),
    "transposed": lambda v, w: jnp.concatenate([v, w], 1).T @ X.T,
    "into another dtype": lambda v, w: (
        X.astype(jnp.bfloat16) @ jnp.concatenate([v, w], 1).astype(jnp.bfloat16)
    ).astype(jnp.float32),
    "on the left": lambda v, w: jnp.einsum("kn,bk->nb", jnp.concatenate([w, v], 1), X),
}


@pytest.mark.parametrize("name", JOINED)
def test_a_product_with_joined_leaves_decodes_none_as_a_whole(name):
    fn, leaves = JOINED[name], (leaf(16, 6), leaf(16, 4, key=2))
    got = jit(jm.lift(fn, on_decode="error"))(*leaves)
    np.testing.assert_allclose(got, fn(*jm.decode(leaves)), rtol=2e-2, atol=2e-2)


def test_leaves_joined_along_what_is_summed_are_decoded_and_both_are_named():
    fn = lambda p: X @ jnp.concatenate([p["a"], p["b"]], 0)
    params, seen = {"a": leaf(10, 4), "b": leaf(6, 4)}, []
    got = jm.lift(fn, on_decode=lambda op, path: seen.append((op, path)))(params)
    np.testing.assert_allclose(got, fn(jm.decode(params)), rtol=1e-4, atol=1e-4)
    assert seen == [("dot_general", "a"), ("dot_general", "b")]


@pytest.mark.parametrize("cell", ["OptimizedLSTMCell", "GRUCell"])
def test_every_kernel_of_a_recurrent_cell_is_used_in_products_and_has_statistics(cell):
    lm = model(cell)
    uses = jm.uses(lm.apply, lm.params, IDS)
    kernels = {path for path in uses if path.endswith("kernel")}
    assert all([use.axes for use in uses[path]] == [(-2,)] for path in kernels)
    assert kernels <= set(jm.stats(lm.apply, lm.params, [(IDS,)]))


def test_an_encoded_lstm_joins_no_decoded_kernels_in_its_steps():
    lm = model("OptimizedLSTMCell")
    uses = jm.uses(lm.apply, lm.params, IDS)
    plan = jm.choose(lm.params, {".*kernel": INT8})
    enc = jm.encode(lm.params, plan, uses=uses)
    assert "f32[8,32]" in str(jax.make_jaxpr(lm.apply)(lm.params, IDS))
    assert "f32[8,32]" not in str(jax.make_jaxpr(lm.apply)(enc, IDS))
    want = jit(lm.apply)(jm.decode(enc), IDS)
    np.testing.assert_allclose(jit(lm.apply)(enc, IDS), want, rtol=1e-4, atol=1e-4)


def cell(w, xs):
    """The last state of a plain recurrent cell over xs (T, B, n)."""
    step = lambda h, x: (jnp.tanh(x @ w + h @ w), None)
    return jax.lax.scan(step, jnp.zeros_like(xs[0]), xs)[0]


@pytest.mark.parametrize("width, platforms", [(16, ("cpu", "tpu")), (1536, ("tpu",)), (3072, ())])
def test_a_cell_is_decoded_before_its_loop_where_a_chip_holds_it(width, platforms):
    w = jax.eval_shape(jm.Int(8).encode, jax.ShapeDtypeStruct((width, width), jnp.float32))
    xs = jax.ShapeDtypeStruct((9, 3, width), jnp.float32)
    traced, product = jax.jit(jm.lift(cell)).trace(w, xs), f"-> tensor<9x3x{width}xf32>"
    text = lambda name: traced.lower(lowering_platforms=(name,)).as_text()
    all_inputs = lambda name: any("dot" in x and product in x for x in text(name).splitlines())
    assert tuple(x for x in ("cpu", "cuda", "tpu") if all_inputs(x)) == platforms


def test_a_small_cell_is_decoded_and_its_inputs_multiplied_before_the_loop():
    w, xs = leaf(16, 16), jax.random.normal(jax.random.key(3), (9, 3, 16))
    lifted = jm.lift(cell, on_decode="error")
    text = lambda xs: str(jax.make_jaxpr(lifted)(w, xs))
    assert ("platform_index" in text(xs), "platform_index" in text(xs[:7])) == (True, False)
    assert text(xs).count("f32[9,3,16] = dot_general") == 1
    run = lambda fn: jax.value_and_grad(lambda xs, w: fn(w, xs).sum())
    got = jit(run(lifted))(xs, w)
    want = jit(run(cell))(xs, jm.decode(w))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, want)
