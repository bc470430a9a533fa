"""A lifted function computes what the function computes on the decoded weights."""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from lifted_leaves import IDS, LAYERS, OUT, STACK, TABLE, W, X, assert_lifts, leaf, mul

import jaxmem as jm

PLACE = NamedSharding(Mesh(jax.devices()[:1], "x"), P())
WIDE = leaf(8, 2, 3, axes=(-3,))
half = lambda x: x.astype(jnp.bfloat16)
RULES = {
    "dot right": (lambda w: X @ w, W),
    "dot left": (lambda w: w.T @ X.T, W),
    "dot left, its stack free": (lambda w: jnp.einsum("lkn,bk->lnb", w, X), STACK),
    "dot, its stack free": (lambda w: jnp.einsum("bk,lkn->bln", X, w), STACK),
    "dot, batched": (lambda w: jnp.einsum("lbk,lkn->lbn", jnp.stack([X] * 4), w), STACK),
    "dot left, batched": (lambda w: jnp.einsum("lkn,lbk->lnb", w, jnp.stack([X] * 4)), STACK),
    "dot into heads": (lambda w: jnp.einsum("bd,dhk->bhk", X, w), WIDE),
    "dot out of heads": (lambda w: jnp.einsum("bhk,hkn->bn", X.reshape(3, 2, 4), w), OUT),
    "dot, summed axes crossed": (
        lambda w: jnp.einsum("bkh,hkn->nb", X.reshape(3, 4, 2), w),
        OUT,
    ),
    "dot of a vector": (lambda w: X[0] @ w, W),
    "dot of many axes": (lambda w: jnp.einsum("abck,kn->cnab", X[None, None], w), W),
    "look up rows": (lambda w: w[IDS], TABLE),
    "look up one row": (lambda w: w[IDS[0, 0]], TABLE),
    "look up a fixed row": (lambda w: w[-3], TABLE),
    "take": (lambda w: jnp.take(w, IDS, axis=0), TABLE),
    "take, out of bounds": (lambda w: jnp.take(w, jnp.array([0, -1, 10, 99]), axis=0), TABLE),
    "take, clipped": (lambda w: jnp.take(w, jnp.array([3, 99]), axis=0, mode="clip"), TABLE),
    "take, wrapped": (lambda w: jnp.take(w, jnp.array([-3, 99]), axis=0, mode="wrap"), TABLE),
    "attend": (lambda w: X @ w.T, TABLE),
    "embed and attend": (lambda w: w[IDS] @ w.T, TABLE),
    "transpose": (lambda w: X @ w.transpose(1, 2, 0).reshape(6, 8).T, WIDE),
    "transpose twice": (lambda w: X @ w.T.T, W),
    "split heads": (lambda w: jnp.einsum("bd,dhk->hbk", X, w.reshape(8, 2, 3)), W),
    "merge heads": (lambda w: X @ w.reshape(8, 6), WIDE),
    "merge summed heads": (lambda w: X @ w.reshape(8, 6), OUT),
    "index": (lambda w: X @ w[1], STACK),
    "index from the end": (lambda w: X @ w[-1], STACK),
    "traced index": (lambda w: X @ w[IDS[0, 0]], STACK),
    "dynamic index": (lambda w: X @ lax.dynamic_index_in_dim(w, 9, 0, False), STACK),
    "slice": (lambda w: mul(X, w[1:3]), STACK),
    "stride": (lambda w: mul(X, w[::2]), STACK),
    "dynamic slice": (lambda w: mul(X, lax.dynamic_slice_in_dim(w, IDS[1, 1], 2)), STACK),
    "gather layers": (lambda w: mul(X, w[jnp.array([3, 0, 0])]), STACK),
    "gather layers beyond": (
        lambda w: mul(X, jnp.take(w, jnp.array([3, 9, -1]), axis=0)),
        STACK,
    ),
    "squeeze": (lambda w: X @ jnp.squeeze(w[2:3], 0), STACK),
    "expand": (lambda w: mul(X, w[None, :, None]), STACK),
    "broadcast": (lambda w: mul(X, jnp.broadcast_to(w, (2, 8, 6))), W),
    "broadcast a stack": (lambda w: mul(X, jnp.broadcast_to(w, (2, 4, 8, 6))), STACK),
    "split a stack": (lambda w: mul(X, w.reshape(2, 2, 8, 6)[1]), STACK),
    "concatenate": (lambda w: mul(X, jnp.concatenate([w, w[:2]])), STACK),
    "stack": (lambda w: mul(X, jnp.stack([w[0], w[3]])), STACK),
    "split": (lambda w: mul(X, jnp.split(w, 2)[1]), STACK),
    "unstack": (lambda w: X @ list(w)[2], STACK),
    "barrier": (lambda w: X @ lax.optimization_barrier(w), W),
    "name": (lambda w: X @ checkpoint_name(w, "w"), W),
    "copy": (lambda w: X @ w.copy(), W),
    "stop_gradient": (lambda w: mul(X, lax.stop_gradient(w)), STACK),
    "device_put": (lambda w: X @ jax.device_put(w, jax.memory.Space.Device), W),
    "device_put, two": (lambda w: jnp.matmul(*jax.device_put((X, w), jax.devices()[0])), W),
    "device_put by a sharding": (lambda w: X @ jax.device_put(w, PLACE), W),
    "reduce_precision": (lambda w: X @ lax.reduce_precision(w, 8, 23), W),
    "bitcast to its dtype": (lambda w: X @ lax.bitcast_convert_type(w, jnp.float32), W),
    "flip a stack": (lambda w: mul(X, jnp.flip(w, 0)), STACK),
    "flip nothing": (lambda w: X @ lax.rev(w, ()), W),
    "pad by nothing": (lambda w: X @ jnp.pad(w, 0), W),
    "dynamic slice of all": (lambda w: X @ lax.dynamic_slice(w, (0, 0), w.shape), W),
}


HALVES = {
    "product": lambda w: (half(X) @ half(w)).astype(jnp.float32),
    "accumulated": lambda w: jnp.dot(half(X), half(w), preferred_element_type=jnp.float32),
    "and back": lambda w: X @ half(w).astype(jnp.float32),
}


@pytest.mark.parametrize("fn, w", RULES.values(), ids=RULES)
def test_stays_encoded_through(fn, w):
    assert_lifts(fn, w)


@pytest.mark.parametrize("fn", HALVES.values(), ids=HALVES)
def test_stays_encoded_through_a_conversion(fn):
    assert_lifts(fn, W, tol=2e-2)


def test_stays_encoded_through_a_sharding_constraint():
    place = NamedSharding(Mesh(jax.devices(), "x"), P(None, None))
    assert_lifts(lambda w: X @ lax.with_sharding_constraint(w, place), W)


RETURNS = {
    "as it came": lambda w: w,
    "transposed": lambda w: w.T,
    "a layer of it": lambda w: w[0],
    "through jit": jax.jit(lambda w: w),
    "through a loop": lambda w: lax.scan(lambda w, _: (w, None), w, None, 2)[0],
}


@pytest.mark.parametrize("fn", RETURNS.values(), ids=RETURNS)
def test_a_leaf_that_is_returned_stays_encoded(fn):
    got = jm.lift(fn, on_decode="error")(STACK)
    assert jm.is_encoded(got)
    np.testing.assert_array_equal(got.decode(), fn(STACK.decode()))


def test_arguments_may_be_numpy_python_and_keywords():
    def fn(p, x, *, power, add=None, flag=True):
        return (x @ p["w"][0]) ** power + (add if flag else 0)

    x = np.asarray(X, np.float64)
    got = jm.lift(fn)({"w": LAYERS}, x, power=2, add=np.float32(1))
    np.testing.assert_allclose(got, (X @ LAYERS.decode()[0]) ** 2 + 1, atol=1e-5)


def test_weakly_typed_arguments_stay_weak():
    fn = lambda w, x, s: (x @ w) * s
    got = jax.jit(lambda x, s: jm.lift(fn)(W.astype(jnp.bfloat16), x, s * 2))(half(X), 0.5)
    assert got.dtype == jnp.bfloat16


def test_integers_of_64_bits_look_up_rows():
    got = jm.lift(lambda w, i: w[i], on_decode="error")(LAYERS, np.array([3, 4]))
    np.testing.assert_array_equal(got.decode(), LAYERS.decode()[3:5])


def test_a_leaf_in_a_closure_fails_loudly():
    with pytest.raises(TypeError):
        jm.lift(lambda x: x @ W)(X)


@pytest.mark.slow
def test_lifting_thirty_unrolled_layers_takes_less_than_a_second():
    def block(x, w):
        q, k, v = (jnp.einsum("btd,dhk->bthk", x, w[n]) for n in "qkv")
        a = jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", q, k))
        x += jnp.einsum("bthk,hkd->btd", jnp.einsum("bhts,bshk->bthk", a, v), w["o"])
        return x + (jax.nn.silu(x @ w["gate"]) * (x @ w["up"])) @ w["down"]

    int4 = functools.partial(leaf, codec=jm.Int(4))
    into, out = int4(8, 2, 4, axes=(0,)), int4(2, 4, 8, axes=(0, 1))
    up, down = int4(8, 16), int4(16, 8)
    layer = dict(q=into, k=into, v=into, o=out, gate=up, up=up, down=down)
    took = {}
    for lift in (jm.lift, lambda fn: fn):
        layers = [layer] * 30 if lift is jm.lift else jm.decode([layer] * 30)
        for _ in range(2):
            model = lambda layers, x: functools.reduce(block, layers, x)  # a new one is traced anew
            start = time.process_time()
            jax.make_jaxpr(lift(model))(layers, jnp.ones((1, 4, 8)))
            took.setdefault(lift, []).append(time.process_time() - start)
    lifted, dense = map(min, took.values())
    assert lifted - dense < 1.0
