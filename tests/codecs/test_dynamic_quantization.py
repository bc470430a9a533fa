"""Dynamic, static and Smooth: the inputs of a weight are rounded too, to integers if possible."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cheap_jit import jit
from jax import lax

import jaxmem as jm
from jaxmem.codecs.dynamic_quantization import _bfloat16_product, _integer_product, rounded
from jaxmem.core.lifting import lift_inference

INNER = [
    jm.Int(8),
    jm.Int(4),
    jm.Int(8, symmetric=False),
    jm.Int(4, group=16),
    jm.Int(3, group=20, symmetric=False),  # the last group is short
    jm.Codebook("nf4", group=16),
]
each_inner = pytest.mark.parametrize("inner", INNER, ids=str)


def weight(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


@each_inner
@pytest.mark.parametrize("to", ["int8", "e4m3"])
@pytest.mark.parametrize("n", [24, 1040])
def test_a_product_is_that_of_the_rounded_input_and_the_decoded_weight(inner, to, n):
    leaf, x = jm.Dynamic(inner, to).encode(weight(48, n)), weight(5, 48, seed=1) + 0.5
    got = jit(jm.lift(jnp.matmul, on_decode="error"))(x, leaf)
    np.testing.assert_allclose(got, rounded(x, leaf) @ jm.decode(leaf), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("inner", INNER[2:5], ids=str)
def test_integers_of_nine_bits_in_bfloat16_make_the_integer_product(inner):
    leaf, zero = inner.encode(weight(48, 24)), jnp.array([[-128.0], [-3.0], [0.0], [127.0]])
    q = jax.random.randint(jax.random.key(1), (4, 48), -128, 128).astype(jnp.int8)
    got, want = (jit(f)(q, zero, leaf) for f in (_bfloat16_product, _integer_product))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-3)


@pytest.mark.skipif(jm.native().instruction_set is None, reason=jm.native().reason)
def test_a_row_of_integers_is_multiplied_by_the_library():
    x, leaf = weight(1, 48, seed=1), jm.Dynamic(jm.Int(4)).encode(weight(48, 24))
    program = jax.jit(jm.lift(jnp.matmul)).lower(x, leaf).as_text()
    assert "jaxmem_integer_rows" in program and "xi8>, tensor" not in program


@pytest.mark.skipif(jm.native().instruction_set in (None, "baseline"), reason="no such product")
def test_many_rows_are_rounded_by_the_library_and_those_with_fixed_ranges_are_not():
    x, enc = weight(9, 48, seed=1), {"w": jm.Dynamic(jm.Int(8)).encode(weight(48, 24))}
    run = jm.lift(lambda w, x: x @ w["w"])
    fixed = jm.static(enc, run, [(x,)])
    is_rounded = lambda w: "rounds = true" in jax.jit(run).lower(w, x).as_text()
    assert is_rounded(enc) and not is_rounded(fixed)


@pytest.mark.parametrize("rows", [1, 9], ids=["a row", "many rows"])
def test_layers_are_read_in_their_stack(rows):
    leaf, x = jm.Dynamic(jm.Int(8)).encode(weight(3, 24, 16)), weight(rows, 24, seed=1)
    run = jax.jit(lift_inference(lambda w, x: lax.scan(lambda _, w: (None, x @ w), None, w)[1]))
    for i, y in enumerate(run(leaf, x)):
        layer = jax.tree.map(lambda a: a[i], leaf)  # noqa: B023
        expected = rounded(x, layer) @ jm.decode(layer)
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-4)
    is_there = jm.native().instruction_set not in ((None,) if rows == 1 else (None, "baseline"))
    assert ("in_stack = true" in run.lower(leaf, x).as_text()) == is_there


def test_second_derivatives_go_straight_through_the_rounding():
    leaf, x, v = (
        jm.Dynamic(jm.Int(8)).encode(weight(2, 24, 8)),
        weight(2, 24),
        weight(2, 24, seed=1),
    )
    straight = lambda x, w: x + lax.stop_gradient(rounded(x, w) - x)
    decoded = lambda x, w: straight(x, w) @ w.decode()

    def layers(product):
        body = lambda x, w: (x + jnp.tanh(product(x, w)).sum(-1, keepdims=True), None)
        loss = lambda x: (lax.scan(body, x, leaf)[0] ** 2).sum()
        return jax.grad(lambda x: (jax.grad(loss)(x) * v).sum())(x)

    got, want = jit(lambda: (layers(jm.lift(jnp.matmul)), layers(decoded)))()
    largest = np.abs(want).max()  # of the terms that a sum adds up and cancels
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * largest)


def test_integers_with_double_quantized_scales_meet_integers():
    leaf = jm.Dynamic(jm.DoubleQuant(jm.Int(4, group=16))).encode(weight(48, 24))
    x, fn = weight(40, 48, seed=1), jm.lift(jnp.matmul, on_decode="error")
    np.testing.assert_allclose(
        fn(x, leaf), rounded(x, leaf) @ jm.decode(leaf), rtol=1e-5, atol=1e-4
    )
    program = jax.jit(fn).trace(x, leaf).lower(lowering_platforms=("cuda",)).as_text()
    assert re.search(r"dot_general.*xi8>.*xi8>.*xi32>", program)


@pytest.mark.parametrize("to", ["int8", "e4m3", "e5m2"])
@pytest.mark.parametrize("shift", [-9.0, 0.0, 2.0])
def test_the_input_is_within_its_stated_bound(to, shift):
    leaf, x = jm.Dynamic(jm.Int(8), to).encode(weight(48, 8)), weight(40, 48, seed=1) + shift
    low, high = (f(x, -1, keepdims=True) for f in (jnp.min, jnp.max))
    limit = (jnp.maximum(high, 0) - jnp.minimum(low, 0)) / 510
    relative = {"int8": 0, "e4m3": jnp.abs(x) / 16, "e5m2": jnp.abs(x) / 8}[to]
    limit = jnp.maximum(relative, limit if to == "int8" else limit / 100)
    assert (jnp.abs(rounded(x, leaf) - x) <= limit * (1 + 1e-4)).all()


def test_a_stack_is_scanned_over_and_a_batch_is_mapped():
    leaf, x = jm.Dynamic(jm.Int(4, group=16)).encode(weight(3, 32, 24)), weight(5, 32, seed=1)
    dot = jm.lift(jnp.matmul, on_decode="error")
    run = lambda x, leaf: jax.lax.scan(lambda x, w: (x, dot(x, w)), x, leaf)[1]
    got, want = jit(run)(x, leaf), jit(jax.vmap(dot, (None, 0)))(x, leaf)
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


def test_the_gradient_goes_straight_through():
    leaf, x = jm.Dynamic(jm.Int(8)).encode(weight(32, 24)), weight(5, 32, seed=1)
    got = jax.grad(lambda x: jm.lift(jnp.matmul)(x, leaf).sum())(x)
    np.testing.assert_allclose(got, jnp.ones((5, 24)) @ jm.decode(leaf).T, rtol=1e-5, atol=1e-5)


def test_a_token_of_zeros_gives_zeros():
    leaf = jm.Dynamic(jm.Int(8)).encode(weight(32, 24))
    assert (jm.lift(jnp.matmul)(jnp.zeros((2, 32)), leaf) == 0).all()


def model(params, x):
    step = lambda x, w: (jnp.tanh(x @ w), None)
    return jax.lax.scan(step, x, params["layers"])[0] @ params["head"]


def test_static_ranges_are_those_that_the_layers_see():
    params = {"layers": weight(3, 16, 16) / 4, "head": weight(16, 4)}
    codec = jm.Dynamic(jm.Int(8))
    enc = jm.encode(params, {"layers": codec, "head": codec})
    batches = [(weight(8, 16, seed=s),) for s in (1, 2)]
    fixed = jm.static(enc, model, batches, method="minmax")
    assert fixed["layers"].limits.shape == (3, 2)
    xs = jnp.concatenate([x for (x,) in batches])
    np.testing.assert_allclose(fixed["layers"].limits[0], [xs.min(), xs.max()], rtol=1e-6)
    assert (jnp.abs(fixed["layers"].limits[1:]) <= 1).all()
    np.testing.assert_allclose(jm.lift(model)(fixed, xs), jm.lift(model)(enc, xs), atol=0.2)
    assert jm.nbytes(fixed) == jm.nbytes(enc) + 4 * 2 * 4


def test_clipped_ranges_leave_out_what_is_rare():
    x = weight(512, 64, seed=1).at[0, 0].set(500.0)
    enc = jm.Dynamic(jm.Int(8)).encode(weight(64, 8))
    run = lambda w, x: x @ w
    ends = {
        m: jm.static(enc, run, [(x,)], method=m).limits for m in ("minmax", "percentile", "mse")
    }
    assert ends["minmax"][1] == 500 and 3.5 < ends["percentile"][1] < 5
    assert 400 < ends["mse"][1] < 500
    assert ends["minmax"][0] == x.min()


@pytest.mark.parametrize("method", ["percentile", "mse"])
def test_static_ranges_follow_inputs_of_any_size(method):
    x, w, run = weight(4, 64, 16, seed=1), weight(4, 16, 8), lambda w, x: x @ w
    sizes = jnp.array([1e30, 1e5, 1e-5, 1e-30])[:, None, None]
    fixed = jm.static(jm.Dynamic(jm.Int(8)).encode(w), run, [(x * sizes,)], method=method)
    error = jnp.linalg.norm(jm.lift(run)(fixed, x * sizes) / sizes - x @ w, axis=(1, 2))
    assert (error < 0.02 * jnp.linalg.norm(x @ w, axis=(1, 2))).all()


def test_a_leaf_inside_another_gets_the_range_of_its_own_inputs():
    plain, w, x = jm.Dynamic(jm.Int(8)), weight(2, 16, 8), weight(32, 16, seed=1)
    run = lambda p, x: jax.lax.scan(lambda y, w: (y + x @ w, None), x @ p["v"], p["w"])[0]
    most = jnp.linspace(1, 9, 16)[None].repeat(2, 0)
    fed = {"w": jm.Moments(most, most, most, jnp.ones(2))}
    plan = {"w[0]": jm.Smooth(plain), "w[1]": jm.Sum((jm.Int(4), plain)), "v": plain}
    enc = jm.encode({"v": w[0], "w": w}, plan, stats=fed)
    fixed = jm.static(enc, run, [(x,)], method="minmax")
    smooth, total = fixed["w"].parts
    limits = [fixed["v"].limits, total.parts[1].limits[0], smooth.inner.limits[0]]
    seen = [x, x, x / smooth.s.astype(jnp.float32)]
    np.testing.assert_allclose(limits, [[x.min(), x.max()] for x in seen], rtol=1e-5)


def test_a_leaf_that_is_multiplied_often_gets_one_range():
    leaf, x = jm.Dynamic(jm.Int(8)).encode(jnp.eye(4)), jnp.linspace(-1, 3, 8).reshape(2, 4)
    often = lambda w, x: jax.lax.scan(lambda x, _: (x @ w, None), x, None, 5)[0]
    low, high = jm.static(leaf, often, [(x,)], method="minmax").limits
    assert -1.1 < low <= -1 and 3 <= high < 3.3


LEAF = {"w": jm.Dynamic(jm.Int(8)).encode(jnp.eye(4))}


@pytest.mark.parametrize(
    "tree, fed, method, error, words",
    [
        ({"w": 1.0}, (jnp.ones((2, 4)),), "mse", ValueError, "no leaf of Dynamic"),
        ({}, (), "median", ValueError, "expected minmax"),
        (LEAF, (jnp.ones((2, 4)) * jnp.nan,), "mse", ValueError, "^w: .* NaN or infinity"),
        (LEAF | {"z": LEAF["w"]}, (jnp.ones((2, 4)),), "mse", ValueError, "^z: no batch"),
        (LEAF, jnp.ones((2, 4)), "mse", TypeError, "static takes batches that are tuples"),
    ],
)
def test_static_refuses_wrong_arguments(tree, fed, method, error, words):
    with pytest.raises(error, match=words):
        jm.static(tree, lambda p, x: x @ p["w"], [fed], method=method)


def test_dynamic_refuses_what_it_cannot_round():
    with pytest.raises(ValueError, match="int8"):
        jm.Dynamic(jm.Int(8), "int4")
    with pytest.raises(TypeError, match="codec of rows"):
        jm.Dynamic(jm.Cast("bfloat16")).encode(jnp.ones((4, 4)))


def stands_out(rows, k):
    """Inputs (rows, k) with three channels that are 50 times as large as the others."""
    return weight(rows, k, seed=1) * jnp.ones(k).at[:3].set(50.0)[None]


@pytest.mark.parametrize("inner", [jm.Dynamic(jm.Int(8)), jm.Dynamic(jm.Int(4, group=16))], ids=str)
def test_channels_that_stand_out_lose_less_when_smoothed(inner):
    w, x = weight(3, 32, 24) / jnp.ones(32).at[:3].set(50.0)[None, :, None], stands_out(64, 32)
    run = jm.lift(lambda w, x: jnp.einsum("bk,lkn->lbn", x, w), on_decode="error")
    fed = jm.stats(lambda p, x: run(p["w"], x), {"w": w}, [(x,)], moments="diag")["w"]
    loss = lambda leaf: float(jnp.square(run(leaf, x) - run(w, x)).mean())
    smooth = jm.Smooth(inner).encode(w, stats=fed)
    assert smooth.s.shape == (3, 32)
    assert loss(smooth) < loss(inner.encode(w)) / 4
    assert jm.nbytes(smooth) == jm.nbytes(inner.encode(w)) + 2 * 3 * 32


def test_smooth_gives_its_codec_the_stats_of_the_divided_inputs():
    w, x = weight(32, 24), stands_out(64, 32)
    fed = jm.stats(lambda p, x: x @ p["w"], {"w": w}, [(x,)])["w"]
    leaf = jm.Smooth(jm.GPTQ(jm.Int(3)), 0.3).encode(w, stats=fed)
    s = leaf.s.astype(jnp.float32)
    divided = jm.stats(lambda p, x: (x / s[None]) @ p["w"], {"w": w}, [(x,)])["w"]
    same = jm.GPTQ(jm.Int(3)).encode(w * s[:, None], stats=divided)
    assert float(jnp.mean(jm.decode(leaf.inner) == jm.decode(same))) > 0.95


def test_smooth_refuses_wrong_arguments():
    with pytest.raises(ValueError, match="strength of 0 to 1"):
        jm.Smooth(jm.Int(8), 2.0)
    with pytest.raises(ValueError, match=r"^w: .*wants the stats"):
        jm.encode({"w": weight(8, 4)}, {"w": jm.Smooth(jm.Int(8))})
