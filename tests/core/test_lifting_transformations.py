"""Loops, branches, derivatives and maps of a function are lifted with it."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cheap_jit import jit
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from lifted_leaves import IDS, LAYERS, STACK, W, X, assert_lifts, clipped, leaf, mul, soft

import jaxmem as jm


def scanned(w, x, body=lambda x, w: (jnp.tanh(x @ w), None), **kwargs):
    return lax.scan(body, x, w, **kwargs)[0]


def carried(w, x):
    """A loop whose carry holds the weight unchanged."""
    return lax.fori_loop(0, 3, lambda i, c: (c[0], jnp.tanh(c[1] @ c[0])), (w, x))[1]


def counted(w, x):
    """A while loop whose condition reads the weight too."""
    go = lambda c: (c[0] < 3) & ((c[1] @ w).sum() < 1e6)
    return lax.while_loop(go, lambda c: (c[0] + 1, jnp.tanh(c[1] @ w)), (0, x))[1]


again = lambda x, w: (jnp.tanh(x @ w), None)
carry = lambda c, _: ((jnp.tanh(c[0] @ c[1]), c[1]), None)
STEPS = {
    "jit": lambda w, x: jax.jit(lambda x, w: jnp.tanh(x @ w))(x, w[0]),
    "nested jit": lambda w, x: jax.jit(lambda x: jax.jit(jnp.matmul)(x, w[0]))(x),
    "remat": lambda w, x: jax.checkpoint(lambda w, x: jnp.tanh(x @ w))(w[0], x),
    "scan": scanned,
    "scan, reverse and unrolled": lambda w, x: scanned(w, x, reverse=True, unroll=2),
    "scan, remat": functools.partial(scanned, body=jax.checkpoint(again)),
    "scan, shared weight": lambda w, x: lax.scan(lambda x, _: again(x, w[1]), x, None, 3)[0],
    "scan, carried weight": lambda w, x: lax.scan(carry, (x, w[1]), None, 3)[0][0],
    "scan in scan": lambda w, x: scanned(
        w.reshape(2, 4, 8, 8), x, lambda x, w: (scanned(w, x), None)
    ),
    "fori, carried weight": lambda w, x: carried(w[0], x),
    "cond": lambda w, x: lax.cond(x[0, 0] > 9, lambda w: x, lambda w: x @ w, w[0]),
    "switch": lambda w, x: lax.switch(IDS[0, 0], [lambda i=i: x @ w[i] for i in range(3)]),
    "vmap": lambda w, x: jax.vmap(jnp.matmul, (None, 0))(x, w),
    "custom_jvp": lambda w, x: soft(x @ w[0]),
}


@pytest.mark.parametrize("fn", STEPS.values(), ids=STEPS)
def test_values_tangents_and_gradients_pass_through(fn):
    def everything(fn, w, x):
        here = functools.partial(fn, w)
        value, slope = jax.jvp(here, (x,), (x,))
        rows = jax.vmap(here)(jnp.stack([x, -x]))
        return value, slope, rows, jax.grad(lambda x: (here(x) ** 2).sum())(x)

    got = jit(functools.partial(everything, jm.lift(fn, on_decode="error")))(LAYERS, X)
    want = jit(functools.partial(everything, fn))(jm.decode(LAYERS), X)
    chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-5, strict=True)


def test_stop_gradient_keeps_a_leaf_encoded_and_its_arrays_without_cotangent():
    frozen = lambda stop: lambda w: (mul(X, stop(w)) ** 2).sum()
    slope = lambda stop: jit(jax.grad(jm.lift(frozen(stop), on_decode="error")))(STACK)
    largest = lambda leaf: max(float(jnp.abs(a).max()) for a in jax.tree.leaves(leaf))
    assert largest(slope(lax.stop_gradient)) == 0 < largest(slope(lambda w: w))


def test_a_custom_vjp_passes_through():
    loss = lambda w, x: (clipped(x @ w) ** 2).sum()
    got = jit(jax.grad(jm.lift(loss, on_decode="error"), 1))(W, X)
    np.testing.assert_allclose(got, jax.grad(loss, 1)(W.decode(), X), atol=1e-5)


def test_a_while_loop_reads_weights_and_carries_them():
    assert_lifts(lambda w, x: counted(w[0], x), LAYERS, X)


def test_a_lifted_function_may_be_mapped_over_the_stack():
    got = jit(jax.vmap(jm.lift(jnp.matmul, on_decode="error"), (None, 0)))(X, STACK)
    np.testing.assert_allclose(got, X @ STACK.decode(), atol=1e-5)


def test_a_lifted_function_may_be_scanned_over_the_stack():
    body = jm.lift(lambda x, w: (x, x @ w), on_decode="error")
    got = jit(lambda w: lax.scan(body, X, w)[1])(STACK)
    np.testing.assert_allclose(got, X @ STACK.decode(), atol=1e-5)


def test_a_gradient_inside_the_function_passes_through():
    loss = lambda x, w: (jnp.tanh(x @ w) ** 2).sum()
    assert_lifts(lambda w: jax.grad(loss)(X, w), W, on_decode="allow")


def test_sharded_weights_and_inputs_give_the_same():
    mesh = Mesh(jax.devices(), "x")
    put = lambda tree, spec: jax.device_put(tree, NamedSharding(mesh, spec))
    x = jnp.tile(X, (8, 1))  # each device gets X: a product of other rows rounds otherwise
    want = jnp.tile(jit(jm.lift(scanned))(LAYERS, X), (8, 1))
    got = jit(jm.lift(scanned))(put(LAYERS, P("x")), put(x, P("x")))
    np.testing.assert_allclose(got, want, atol=1e-6)
    assert got.sharding.is_equivalent_to(NamedSharding(mesh, P("x")), 2)


def test_the_gradient_of_a_decoded_weight_keeps_the_packed_one():
    layers, x = [leaf(32, 32)] * 8, jnp.ones((2, 32))
    model = lambda layers, x: functools.reduce(lambda x, w: jnp.tanh(x @ w.T), layers, x)

    def kept(fn):
        vjp = lambda layers, x: jax.vjp(functools.partial(fn, layers), x)[1]
        return jm.nbytes(jax.eval_shape(vjp, layers, x))

    packed, dense = jm.nbytes(layers), jm.nbytes(jm.decode(layers))
    assert kept(lambda layers, x: model(jm.decode(layers), x)) > dense
    assert kept(jm.lift(model)) < packed + 8 * 3 * x.nbytes < dense


@pytest.mark.parametrize("way", [lambda f: f, lambda f: jax.grad(f, 1)], ids=["value", "grad"])
def test_a_scanned_stack_is_never_dense_at_once(way):
    layers = jax.eval_shape(jm.Int(4).encode, jax.ShapeDtypeStruct((8, 128, 128), jnp.float32))
    x = jax.ShapeDtypeStruct((2, 128), jnp.float32)
    loss = lambda w, x: scanned(w, x).sum()
    temp = lambda f: jit(way(f)).lower(layers, x).compile().memory_analysis().temp_size_in_bytes
    assert temp(lambda w, x: loss(w.decode(), x)) > layers.size * 4
    assert temp(jm.lift(loss, on_decode="error")) < layers.size * 4 / 4
