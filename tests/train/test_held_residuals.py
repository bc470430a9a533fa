"""What a policy keeps may wait encoded: the values stay, and gradients are near and unbiased."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cheap_jit import jit
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

import jaxmem as jm
from jaxmem.compiler.residuals import residuals
from jaxmem.core.linear_parts import forward_and_backward
from jaxmem.train.residual_codec import keep, restored

D, F, LAYERS = 32, 64, 4


def layers(ws, x):
    def layer(x, w):
        a, b = w
        out = checkpoint_name(jnp.tanh(x @ a), "out")
        return x + nn.silu(out) @ b.astype(jnp.bfloat16).astype(x.dtype), None

    return jax.lax.scan(layer, x, ws)[0]


W = tuple(
    jax.random.normal(jax.random.key(i), (LAYERS, *s)) / 8 for i, s in enumerate([(D, F), (F, D)])
)
X = jax.random.normal(jax.random.key(2), (16, D))


def loss(fn):
    return lambda ws, x: jnp.square(fn(ws, x)).sum()


def cosine(a, b):
    a, b = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)]) for t in (a, b))
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


@pytest.fixture(scope="module")
def exact():
    return jit(jax.value_and_grad(loss(layers)))(W, X)


@pytest.mark.parametrize(
    ("policy", "least", "bytes_less"),
    [
        (jm.Remat("none", held="int8"), 0.9995, 0.6),
        (jm.Remat("none", held="int4"), 0.97, 0.7),
        (jm.Remat("full", held="int8"), 0.998, 0.5),
        (jm.Remat("dots", held="int8"), 0.998, 0.6),
        (jm.Remat("named", ("out",), held="int8"), 0.998, 0.6),
        (jm.Remat("named", ("out",), held="host"), 1 - 1e-6, 0.0),
    ],
    ids=str,
)
def test_the_value_stays_and_the_gradient_is_near(policy, least, bytes_less, exact):
    value, gradient = jit(jax.value_and_grad(loss(jm.remat(layers, policy))))(W, X)
    np.testing.assert_allclose(value, exact[0], rtol=1e-5)
    assert cosine(gradient, exact[1]) > least
    plain = jm.Remat(policy.kind, policy.names)
    kept = [residuals(loss(jm.remat(layers, p)), W, X) for p in (policy, plain)]
    assert kept[0] <= (1 - bytes_less) * kept[1]


@pytest.mark.parametrize(("held", "codes"), [("int8", 127), ("int4", 7)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rounding_is_unbiased_and_less_than_a_step(held, codes, dtype):
    x = jax.random.normal(jax.random.key(0), (512, 192)).astype(dtype).astype(jnp.float32)
    kept = jit(keep, static_argnums=(1, 2, 3))(x, held, 3, False)
    group = x.size // kept.scale.size
    step = jnp.abs(x.reshape(512, -1, group)).max(-1, keepdims=True) / codes
    error = (restored(kept) - x).reshape(512, -1, group) / step
    assert float(jnp.abs(error).max()) < 1 + 1e-4
    assert abs(float(error.mean())) < 4 * 0.5 / np.sqrt(x.size)  # of errors within ±1, σ ≤ ½
    assert restored(keep(x.astype(dtype), held, 3, False)).dtype == dtype


def test_weights_are_neither_encoded_nor_kept():
    few = jax.ShapeDtypeStruct((1, D), jnp.float32)
    kept = residuals(loss(jm.remat(layers, jm.Remat("none", held="int8"))), W, few)
    assert kept < D * F  # the bytes of one weight of one layer in int8


@pytest.mark.parametrize(
    ("read", "exact"),
    [
        (lambda scores: jax.nn.softmax(scores * 4.0), True),
        (lambda scores: jnp.where(scores > 0.5, 1.0, scores), True),
        (lambda scores: jax.jit(jnp.exp)(scores + 1.0), True),
        (lambda scores: jnp.tanh(scores) * scores, False),
    ],
)
def test_what_exp_or_a_comparison_reads_stays_exact(read, exact):
    policy = jm.Remat("named", ("scores",)).policy
    layer = lambda x, w: [read(checkpoint_name(x @ w @ x.T, "scores")) @ x]
    checkpoint = lambda fn: jax.checkpoint(fn, policy=policy)
    made = forward_and_backward(layer, [X, jnp.eye(D)], [False, True], checkpoint)
    states, weights, scores = made.residuals
    assert (states.is_fixed, states.exact) == (False, False)
    assert (weights.is_fixed, weights.source) == (True, 1)
    assert (scores.is_fixed, scores.exact) == (False, exact)


def test_masks_take_a_bit():
    mask = jax.random.bernoulli(jax.random.key(0), 0.5, (3, 21))
    kept = keep(mask, "int8", 0, exact=False)
    assert jm.nbytes(kept) == 3 * 3 and (restored(kept) == mask).all()


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        x += nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))
        return x + nn.Dense(D)(nn.gelu(nn.Dense(F)(nn.LayerNorm()(x)))), None


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        scan = nn.scan(Block, {"params": 0}, split_rngs={"params": True}, length=LAYERS)
        return scan()(x, None)[0]


class Layer(nnx.Module):
    def __init__(self, rngs):
        self.norm, self.up = nnx.LayerNorm(D, rngs=rngs), nnx.Linear(D, F, rngs=rngs)
        self.down = nnx.Linear(F, D, rngs=rngs)

    def __call__(self, x):
        return x + self.down(nnx.silu(self.up(self.norm(x))))


def linen():
    x = jnp.ones((2, 16, D))
    params = jax.eval_shape(Linen().init, jax.random.key(0), x)
    leaves, tree = jax.tree.flatten(params)
    drawn = [jax.random.normal(jax.random.key(i), w.shape) / 8 for i, w in enumerate(leaves)]
    return Linen().apply, tree.unflatten(drawn)


def in_nnx():
    make = nnx.vmap(Layer, in_axes=0, out_axes=0)
    graph, state = nnx.split(make(nnx.Rngs(0).split(LAYERS)))

    def run(state, x):
        scan = nnx.scan(lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return scan(x, nnx.merge(graph, state))

    return run, state


@pytest.mark.parametrize("make", [linen, in_nnx])
def test_unmodified_modules_keep_fewer_bytes(make):
    fn, params = make()
    x = jax.random.normal(jax.random.key(1), (2, 16, D))
    held = jm.remat(fn, jm.Remat("none", held="int8"))
    got, want = (jit(jax.grad(loss(f)))(params, x) for f in (held, fn))
    assert cosine(got, want) > 0.999
    assert residuals(loss(held), params, x) < 0.5 * residuals(loss(fn), params, x)


def test_a_compiled_program_takes_fewer_bytes():
    fn, params = in_nnx()
    held = jm.remat(fn, jm.Remat("none", held="int8"))
    temp = lambda f: jm.memory(jax.grad(loss(f)), params, jnp.ones((8, 64, D))).temp
    assert temp(held) < 0.7 * temp(fn)


def test_encoded_weights_stay_encoded():
    tree = {"a": W[0], "b": W[1]}
    enc = jm.encode(tree, jm.choose(tree, {".*": jm.Int(8)}))
    fn = jm.lift(lambda tree, x: layers((tree["a"], tree["b"]), x))
    held = jm.remat(fn, jm.Remat("named", ("out",), held="int8"))
    got, want = (jit(jax.grad(lambda x, f=f: loss(f)(enc, x)))(X) for f in (held, fn))
    assert cosine(got, want) > 0.998
    kept = [residuals(lambda x, f=f: loss(f)(enc, x), X) for f in (held, fn)]
    assert kept[0] < 0.5 * kept[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(kind="full", held="int2"), "held is 'int2', expected one of int8, int4, host"),
        (dict(kind="nested", held="int8"), "remat 'nested' with held 'int8'"),
        (dict(kind="offload", names=("out",), held="int8"), "expected none, full"),
    ],
)
def test_a_way_of_holding_that_nothing_computes_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        jm.Remat(**options)


def test_layers_of_a_python_loop_are_refused():
    loop = lambda ws, x: x @ ws[0] @ ws[1] @ ws[2]
    run = jm.remat(loop, jm.Remat("full", held="int8"))
    with pytest.raises(NotImplementedError, match="expected a scan over layers"):
        run(jnp.ones((3, D, D)), X)
