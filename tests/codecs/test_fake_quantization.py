"""Fake and distillation: weights learn through their rounding; exports are those of training."""

import functools
import json

import chex
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cheap_jit import jit

import jaxmem as jm
from jaxmem.codecs.dynamic_quantization import rounded

CODECS = [
    jm.Int(2),
    jm.Int(3, group=8, symmetric=False),
    jm.Float("nvfp4"),
    jm.Codebook("nf4", group=16),
    jm.Affine(3, group=8),
    jm.KMeans(2),
]
each_codec = pytest.mark.parametrize("codec", CODECS, ids=str)
WITH_SCALES = CODECS[:-1]
WRAPPED = [
    jm.Search(jm.Int(2)),
    jm.Dynamic(jm.Int(4)),
    jm.DoubleQuant(jm.Int(4, group=8), jm.Int(8)),
]


def weight(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def model(params, x):
    return jnp.tanh(x @ params["up"]) @ params["down"]


@functools.cache
def task():
    dense = {"up": weight(16, 32) / 4, "down": weight(32, 4, seed=1) / 6}
    x = weight(256, 16, seed=2)
    return dense, x, model(dense, x)


@functools.cache
def trained(codec, steps=100):
    """(loss before, loss after, tree before, tree after) of a fit to the dense model's outputs."""
    dense, x, y = task()
    tree = jm.encode(dense, jm.choose(dense, {"up|down": codec}))
    loss = lambda tree: ((jm.lift(model)(tree, x) - y) ** 2).mean()
    adam = optax.adam(optax.cosine_decay_schedule(2e-3, steps))

    @jit
    def step(tree, state):
        slopes = jax.grad(loss)(tree)
        with jax.numpy_dtype_promotion("standard"):  # optax counts its steps in int32
            updates, state = adam.update(slopes, state)
        return optax.apply_updates(tree, updates), state

    after, state = tree, adam.init(tree)
    for _ in range(steps):
        after, state = step(after, state)
    return float(jit(loss)(tree)), float(jit(loss)(after)), tree, after


@each_codec
def test_training_through_the_rounding_lowers_the_loss(codec):
    first, last, *_ = trained(jm.Fake(codec))
    assert last < 0.8 * first


@pytest.mark.parametrize("codec", WITH_SCALES, ids=str)
def test_scales_are_learned_too(codec):
    first, last, before, after = trained(jm.Fake(codec, learn=True))
    assert last < 0.8 * first
    assert (after["up"].grown != before["up"].grown).any()
    few = getattr(codec, "bits", 4) < 4
    assert last < (0.9 if few else 1.0) * trained(jm.Fake(codec))[1]


@pytest.mark.parametrize("learn", [False, True])
@pytest.mark.parametrize("codec", [*CODECS, *WRAPPED], ids=str)
def test_what_is_exported_is_what_was_trained(codec, learn):
    if learn and isinstance(codec, jm.KMeans):
        pytest.skip("it has no scales")
    leaf = jit(jm.Fake(codec, learn=learn).encode)(weight(3, 32, 24))
    out, *both = jit(lambda leaf: (jm.export(leaf), jm.export(leaf).decode(), leaf.decode()))(leaf)
    np.testing.assert_allclose(*both, rtol=1e-6, atol=1e-6)
    assert jm.nbytes(out) < jm.nbytes(leaf) / 2
    assert jax.tree.structure(out) == jax.tree.structure(codec.encode(weight(3, 32, 24)))


@pytest.mark.parametrize("turned", [False, True])
def test_what_a_codec_rounds_of_x_is_rounded_in_training(turned):
    fake, turn = jm.Fake(jm.Dynamic(jm.Int(4)), learn=turned), lambda w: w.T if turned else w
    leaf = fake.encode(turn(weight(32, 24)), (-1 if turned else -2,))
    x, dot = weight(40, 32, seed=1).at[:, 0].mul(100.0), lambda x, w: x @ turn(w)
    both = lambda leaf: (jm.lift(dot)(x, leaf), jm.lift(dot)(x, jm.export(leaf)))
    np.testing.assert_array_equal(*jit(both)(leaf))
    slopes = lambda fn, *at: jit(
        jax.grad(lambda *at: (fn(*at) * jnp.arange(24.0)[None]).sum(), (0, 1))
    )(*at)
    (by_x, by_w), want = slopes(jm.lift(dot), x, leaf), slopes(dot, x, leaf.decode())
    np.testing.assert_allclose(by_x, want[0], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(by_w.w, want[1], rtol=1e-5, atol=1e-4)


def test_encode_takes_a_trained_leaf():
    leaf = jm.Fake(jm.Int(4)).encode(weight(32, 24))
    np.testing.assert_array_equal(
        jm.encode({"w": leaf}, {"w": jm.Int(4)})["w"].decode(), jm.export(leaf).decode()
    )
    learned = jm.Fake(jm.Int(4), learn=True).encode(weight(32, 24))
    same = jm.encode({"w": learned}, {"w": jm.Int(4)})["w"]
    chex.assert_trees_all_equal(same, jm.export(learned), strict=True)
    with pytest.raises(TypeError, match="expected jm"):
        jm.encode({"w": learned}, {"w": jm.Int(8)})


def test_layers_that_differ_are_each_exported_and_encoded():
    codecs, w = {"w": jm.Int(4), "w[0]": jm.Int(8)}, {"w": weight(2, 32, 24)}
    fake = jm.encode(w, {path: jm.Fake(codec) for path, codec in codecs.items()})
    for got in (jm.export(fake), jm.encode(fake, codecs)):
        chex.assert_trees_all_equal(got, jm.encode(w, codecs), strict=True)


def test_the_scale_has_the_gradient_of_lsq():
    w = weight(8, 2).at[:, 1].set(0.0)
    leaf = jm.Fake(jm.Int(3), learn=True).encode(w)
    range_of_half_steps = 3 * 0.5 - jnp.abs(w).max(0)[:, None]
    leaf = jax.tree.unflatten(jax.tree.structure(leaf), [w, range_of_half_steps])
    ratio = np.asarray(w)[:, 0] / float(leaf.encoded().scale[0, 0])
    inside = np.abs(ratio) <= 3
    assert not inside.all()
    each = np.where(inside, np.round(ratio) - ratio, 3 * np.sign(ratio))
    got = jit(jax.grad(lambda leaf: leaf.decode().sum()))(leaf)
    np.testing.assert_allclose(got.grown[0, 0] / 3, each.sum() / np.sqrt(8 * 3), rtol=1e-5)
    np.testing.assert_array_equal(got.w, 1)  # the column of zeros has a gradient, too
    assert got.grown[1, 0] == 0


def test_a_stack_of_fake_layers_is_scanned_over():
    tree = jm.Fake(jm.Int(3, group=8), learn=True).encode(weight(3, 16, 16))
    step = lambda x, w: (jnp.tanh(x @ w), None)
    run = jm.lift(lambda w, x: jax.lax.scan(step, x, w)[0])
    x = weight(4, 16, seed=1)
    np.testing.assert_allclose(
        jit(run)(tree, x), jax.lax.scan(step, x, tree.decode())[0], rtol=1e-5, atol=1e-5
    )
    slopes = jit(jax.grad(lambda w: run(w, x).sum()))(tree)
    assert jnp.isfinite(slopes.w).all() and (slopes.grown != 0).any()


@pytest.mark.slow
def test_distillation_brings_a_rounded_student_back_to_its_teacher():
    dense, x, teacher = task()
    fake = jm.Fake(jm.Int(2, group=16), learn=True)
    tree = jm.encode(dense, jm.choose(dense, {"up|down": fake}))
    labels, adam = teacher.argmax(-1), optax.adam(2e-3)

    def loss(tree):
        return jm.distillation(jm.lift(model)(tree, x), teacher, labels, alpha=0.9, temperature=2.0)

    @jit
    def step(tree, state):
        slopes = jax.grad(loss)(tree)
        with jax.numpy_dtype_promotion("standard"):  # optax counts its steps in int32
            updates, state = adam.update(slopes, state)
        return optax.apply_updates(tree, updates), state

    def divergence(tree):
        own = jm.lift(model)(tree, x)
        return float(jm.distillation(own, teacher, labels, alpha=1.0))

    after, state = tree, adam.init(tree)
    for _ in range(100):
        after, state = step(after, state)
    assert divergence(jm.export(after)) < divergence(tree) / 2


def test_the_teacher_learns_nothing_and_the_student_through_both_terms():
    s, t, labels = weight(4, 8), weight(4, 8, seed=1), jnp.array([0, 3, 7, 1])
    for alpha in (0.0, 1.0):
        loss = functools.partial(jm.distillation, labels=labels, alpha=alpha, temperature=2.0)
        own, other = jax.grad(loss, (0, 1))(s, t)
        assert (other == 0).all() and (own != 0).all()
        np.testing.assert_allclose(own.sum(-1), 0, atol=1e-6)


def test_a_student_that_is_its_teacher_has_no_divergence():
    s = weight(4, 8)
    assert abs(jm.distillation(s, s, jnp.zeros(4, jnp.int32), alpha=1.0, temperature=3.0)) < 1e-6


@pytest.mark.parametrize(
    "options, words", [(dict(alpha=2), "alpha"), (dict(temperature=0), "temp")]
)
def test_options_out_of_range_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        jm.distillation(jnp.ones((1, 2)), jnp.ones((1, 2)), jnp.zeros(1, jnp.int32), **options)
    with pytest.raises(TypeError, match="no scales"):
        jm.Fake(jm.KMeans(2), learn=True)
    with pytest.raises(TypeError, match="without the stats"):
        jm.Fake(jm.Dynamic(jm.GPTQ(jm.Int(4))))


def straight(x, leaf, slope):
    """The gradients of Σ slope · (x · w) that go straight through the rounding of x and w."""
    encoded = jm.export(leaf)
    return slope @ encoded.decode().T, rounded(x, encoded).T @ slope


@pytest.mark.parametrize("backward", ["codes", "int8"])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_backward_pass_reads_the_codes_of_the_product(bits, backward):
    leaf = jm.Fake(jm.Dynamic(jm.Int(bits)), backward=backward).encode(weight(48, 40))
    x, slope = weight(64, 48, seed=1).at[:, 0].mul(9.0), weight(64, 40, seed=2)
    y, pull = jax.vjp(jm.lift(jnp.matmul), x, leaf)
    np.testing.assert_array_equal(y, jm.lift(jnp.matmul)(x, jm.export(leaf)))
    large = [a.dtype for a in jax.tree.leaves(pull) if a.size >= 48 * 40 // 2]
    assert large and all(dtype.itemsize == 1 for dtype in large)
    (by_x, by_w), want = pull(slope), straight(x, leaf, slope)
    for got, exact in zip((by_x, by_w.w), want):
        error = jnp.linalg.norm(got - exact) / jnp.linalg.norm(exact)
        assert error < (1e-5 if backward == "codes" else 0.02)
        assert backward == "codes" or abs((got - exact).mean()) < 5e-3


def test_layers_keep_fewer_bytes_for_the_backward_pass():
    x, w = weight(512, 64), weight(16, 64, 64) / 8
    layer = lambda x, w: (x + jax.nn.relu(x @ w) @ w, None)
    scan = jm.lift(lambda w, x: jax.lax.scan(layer, x, w)[0])

    def temp(backward):
        leaf = jm.Fake(jm.Dynamic(jm.Int(8)), backward=backward).encode(w)
        slope = jax.grad(lambda leaf, x: scan(leaf, x).sum())
        return jm.memory(slope, leaf, x).temp

    assert temp("int8") < 0.75 * temp(None)


@pytest.mark.parametrize(
    ("codec", "options", "error", "message"),
    [
        (jm.Int(8), {"backward": "codes"}, TypeError, "expected a Dynamic"),
        (jm.Dynamic(jm.Int(8)), {"backward": "int4"}, ValueError, "one of codes, int8"),
        (jm.Dynamic(jm.Int(8)), {"backward": "int8", "learn": True}, ValueError, "learn False"),
        (jm.Dynamic(jm.Int(8, group=8)), {"backward": "int8"}, TypeError, "without groups"),
        (jm.Dynamic(jm.Int(8), "e4m3"), {"backward": "int8"}, TypeError, "to int8"),
    ],
    ids=range(5),
)
def test_a_backward_pass_without_codes_is_refused(codec, options, error, message):
    with pytest.raises(error, match=message):
        jm.Fake(codec, **options)


def test_a_state_from_before_the_last_option_is_that_of_its_default():
    leaf = jm.Fake(jm.Dynamic(jm.Int(8))).encode(jnp.ones((8, 4)))
    older = flax.serialization.to_state_dict(leaf)
    older["static"] = json.dumps({"tuple": json.loads(older["static"])["tuple"][:-1]})
    chex.assert_trees_all_equal(flax.serialization.from_state_dict(leaf, older), leaf)
    other = jm.Fake(jm.Dynamic(jm.Int(8)), backward="codes").encode(jnp.ones((8, 4)))
    with pytest.raises(ValueError, match="same plan"):
        flax.serialization.from_state_dict(other, older)
