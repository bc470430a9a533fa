"""A lifted function computes what the function computes on the decoded weights."""

import functools
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cheap_jit import jit
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxmem as jm

X = jax.random.normal(jax.random.key(1), (3, 8))
IDS = jnp.array([[1, 0], [7, 7]])


QUICK = jm.LowRank(2)  # two plain products: quick to compile


@functools.cache
def leaf(*shape, axes=(-2,), codec=QUICK):
    return codec.encode(jax.random.normal(jax.random.key(0), shape), axes)


def assert_lifts(fn, *args, on_decode="error", tol=1e-5):
    """The lifted `fn` gives what `fn` gives on the decoded arguments, and decodes no weight."""
    got = jit(jm.lift(fn, on_decode=on_decode))(*args)
    want = fn(*jm.decode(args))
    close = functools.partial(np.testing.assert_allclose, rtol=tol, atol=tol)
    jax.tree.map(close, jm.decode(got), want)


W = leaf(8, 6)
PLACE = NamedSharding(Mesh(jax.devices()[:1], "x"), P())
WIDE = leaf(8, 2, 3, axes=(-3,))
OUT = leaf(2, 4, 6, axes=(0, 1))
TABLE = leaf(10, 8, axes=(-1,))
STACK = leaf(4, 8, 6)
LAYERS = leaf(8, 8, 8, codec=jm.Cast("float16"))
mul = jnp.matmul
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


@jax.custom_jvp
def soft(x):
    return jnp.logaddexp(x, 0.0)


soft.defjvp(lambda p, t: (soft(*p), jax.nn.sigmoid(*p) * t[0]))


@jax.custom_vjp
def clipped(x):
    return x


clipped.defvjp(lambda x: (x, None), lambda _, g: (jnp.clip(g, -0.5, 0.5),))


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


DECODES = {
    "add": (lambda w: w + 1, W, "add"),
    "compare": (lambda w: w > 0, W, "gt"),
    "sum": (lambda w: w.sum(), W, "reduce_sum"),
    "a product over other axes": (lambda w: w @ jnp.ones((6, 2)), W, "dot_general"),
    "a product over part of the sum": (
        lambda w: jnp.einsum("bk,hkn->bhn", X[:, :4], w),
        OUT,
        "dot_general",
    ),
    "a product of two leaves": (lambda w: w.T @ w, W, "dot_general"),
    "reshape across the sides": (lambda w: w.reshape(48), W, "reshape"),
    "fewer bits": (lambda w: lax.reduce_precision(w, 5, 10), W, "reduce_precision"),
    "flip of rows": (lambda w: jnp.flip(w, 0), W, "rev"),
    "padding": (lambda w: jnp.pad(w, 1), W, "pad"),
    "slice of a row": (lambda w: w[:, :2], W, "slice"),
    "columns of a table": (lambda w: w[:, IDS[0]], TABLE, "gather"),
    "convolution": (
        lambda w: lax.conv(jnp.ones((1, 4, 5, 5)), w.transpose(3, 2, 0, 1), (1, 1), "SAME"),
        leaf(3, 3, 4, 6, axes=(0, 1, 2)),
        "conv_general_dilated",
    ),
    "integers": (lambda w: w.astype(jnp.int32), W, "convert_element_type"),
    "custom_jvp": (soft, W, "custom_jvp_call"),
    "custom_vjp": (clipped, W, "custom_vjp_call"),
    "relu": (jax.nn.relu, W, "custom_jvp_call"),
    "scan over rows": (lambda w: lax.scan(lambda c, r: (c + r.sum(), r), 0.0, w), W, "scan"),
    "scan over a moved stack": (
        lambda w: lax.scan(lambda c, r: (c, r * 2), 0, w.transpose(1, 0, 2, 3)),
        leaf(4, 4, 8, 6),
        "scan",
    ),
    "scan of a changing carry": (
        lambda w: lax.scan(lambda c, _: (c * 2, None), w, None, 2)[0],
        W,
        "scan",
    ),
    "what a scan yields": (lambda w: lax.scan(lambda c, r: (c, r.T), 0, w)[1], STACK, "scan"),
    "what a branch returns": (
        lambda w: lax.cond(IDS[0, 0] > 0, lambda: w[0], lambda: w[1]),
        STACK,
        "cond",
    ),
    "what remat returns": (jax.checkpoint(lambda w: w), W, "remat"),
    "while": (lambda w: lax.while_loop(lambda w: w[0, 0] < 9, lambda w: w + 1, w), W, "while"),
    "shard_map": (
        jax.shard_map(
            lambda w: w, mesh=Mesh(jax.devices(), "x"), in_specs=P("x"), out_specs=P("x")
        ),
        W,
        "shard_map",
    ),
}


@pytest.mark.parametrize("fn, w, primitive", DECODES.values(), ids=DECODES)
def test_decodes_where_there_is_no_other_way_and_says_so(fn, w, primitive):
    calls = []
    assert_lifts(
        lambda p: fn(p["mlp"]["w"]), {"mlp": {"w": w}}, on_decode=lambda *call: calls.append(call)
    )
    assert (primitive, "mlp/w") in calls
    message = f"{primitive} has no encoded form for 'mlp/w'"
    with pytest.raises(TypeError, match=message):
        jax.eval_shape(jm.lift(lambda p: fn(p["mlp"]["w"]), on_decode="error"), {"mlp": {"w": w}})


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
