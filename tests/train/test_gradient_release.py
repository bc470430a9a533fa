"""A released step gives what jax.grad and optax give, layer by layer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cheap_jit import jit
from flax import linen as nn
from flax import nnx

import jaxmem as jm
from jaxmem.core.axis_blocks import AxisBlocks
from jaxmem.optimizers import apply_rounded, in_float32, in_int8
from jaxmem.train import released, scale_of, scaled, train_state
from jaxmem.train.traced_step import in_blocks

WIDTH, LAYERS, VOCAB = 8, 3, 16
IDS = jax.random.randint(jax.random.key(1), (4, 6), 0, VOCAB)


def random(tree):
    keys = iter(jax.random.split(jax.random.key(0), 99))
    return jax.tree.map(lambda x: jax.random.normal(next(keys), x.shape) / 4, tree)


def cross_entropy(logits, ids):
    return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], ids[:, 1:]).mean()


def plain():
    """A model with tied embedding, a gain that all layers read, and a loss of each layer."""
    shape = lambda *s: jnp.zeros(s)
    layers = {"up": shape(LAYERS, WIDTH, 12), "down": shape(LAYERS, 12, WIDTH)}
    params = {"embed": shape(VOCAB, WIDTH), "gain": shape(WIDTH), "layers": layers}

    def loss(params, ids):
        def layer(x, w):
            y = jnp.tanh(x @ w["up"]) @ w["down"]
            return x + y * params["gain"][None, None], (y**2).mean()

        x, sizes = jax.lax.scan(layer, params["embed"][ids], params["layers"])
        return cross_entropy(x @ params["embed"].T, ids) + sizes.mean()

    return loss, params


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.Dense(WIDTH)(jnp.tanh(nn.Dense(12)(nn.LayerNorm()(x)))), None


class Linen(nn.Module):
    @nn.compact
    def __call__(self, ids):
        x = nn.Embed(VOCAB, WIDTH)(ids)
        options = dict(variable_axes={"params": 0}, split_rngs={"params": True}, length=LAYERS)
        x, _ = nn.scan(Block, **options)(name="layers")(x, None)
        return nn.Dense(VOCAB)(x)


def linen():
    params = jax.eval_shape(Linen().init, jax.random.key(0), IDS)["params"]
    return lambda p, ids: cross_entropy(Linen().apply({"params": p}, ids), ids), params


class Nnx(nnx.Module):
    def __init__(self, rngs):
        @nnx.split_rngs(splits=LAYERS)
        @nnx.vmap
        def layers(rngs):
            return nnx.Linear(WIDTH, WIDTH, rngs=rngs)

        self.embed = nnx.Embed(VOCAB, WIDTH, rngs=rngs)
        self.layers = layers(rngs)
        self.head = nnx.Linear(WIDTH, VOCAB, rngs=rngs)

    def __call__(self, ids):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def run(x, layer):
            return x + jnp.tanh(layer(x))

        return self.head(run(self.embed(ids), self.layers))


def of_nnx():
    graph, params = nnx.split(nnx.eval_shape(lambda: Nnx(nnx.Rngs(0))))
    return lambda params, ids: cross_entropy(nnx.merge(graph, params)(ids), ids), params


def steps(step, state, count=2):
    run, losses = jit(step), []
    for _ in range(count):
        state, value = run(state, IDS)
        losses.append(value)
    return state, losses


def usual_step(loss, optimizer):
    def step(state, ids):
        value, slope = jax.value_and_grad(loss)(state["params"], ids)
        with jax.numpy_dtype_promotion("standard"):
            updates, opt = optimizer.update(slope, state["opt"], state["params"])
        params = apply_rounded(state["params"], updates, state["step"])
        return {"params": params, "opt": opt, "step": state["step"] + 1}, value

    return step


def assert_close(a, b, atol=1e-5):
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=atol)
    jax.tree.map(close, a, b)


SGD = optax.sgd(0.1)
CLIPPED = optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.1, 0.9))


@pytest.mark.parametrize(
    ("model", "optimizer", "same", "options"),
    [
        (plain, optax.adamw(1e-2), None, {}),
        (plain, optax.sgd(0.1, 0.9), CLIPPED, dict(micro=2, clip=0.1)),
        (linen, optax.adam(1e-2), None, dict(micro=2)),
        (of_nnx, optax.adam(1e-2), None, {}),
    ],
    ids=["plain, adamw", "plain, clipped, 2 micro-batches", "linen", "NNX"],
)
def test_a_released_step_is_the_usual_step(model, optimizer, same, options):
    loss, params = model()
    params = random(params)
    state, losses = steps(released(loss, optimizer, **options), train_state(params, optimizer))
    want, values = steps(
        usual_step(loss, same or optimizer), train_state(params, same or optimizer)
    )
    assert_close(losses, values)
    assert_close(state["params"], want["params"])
    assert_close(jax.tree.leaves(state["opt"]), jax.tree.leaves(want["opt"]))


def test_a_large_array_is_updated_in_blocks_as_the_usual_step_updates_it(monkeypatch):
    monkeypatch.setattr("jaxmem.train.traced_step.BLOCK_NUMBERS", 64)
    whole = []
    original = AxisBlocks.of
    found = lambda *args: whole.append(original(*args)) or whole[-1]
    monkeypatch.setattr("jaxmem.train.traced_step.AxisBlocks.of", found)
    loss, params = plain()
    params, optimizer = random(params), in_float32(optax.adamw(1e-2))
    state, _ = steps(released(loss, optimizer, micro=2), train_state(params, optimizer))
    want, _ = steps(usual_step(loss, optimizer), train_state(params, optimizer))
    assert len(whole) == 1 and whole[0] is not None  # of the embedding, traced once
    assert_close(state["params"], want["params"])


@pytest.mark.parametrize(("held", "least"), [("host", 0.0), ("int8", 1e-7)])
def test_inputs_of_layers_wait_in_another_form(held, least):
    loss, params = in_bytes(None)
    params = jax.tree.map(lambda w: w.astype(jnp.float32), params)
    x = jax.random.normal(jax.random.key(2), (8, 16))
    state = train_state(params, SGD)
    new = [jit(released(loss, SGD, micro=2, held=h))(state, x)[0]["params"] for h in (None, held)]
    far = max(jax.tree.leaves(jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), *new)))
    moved = float(jnp.abs(new[0]["layers"]["up"] - params["layers"]["up"]).max())
    assert least <= far < max(0.03 * moved, 1e-9)


@pytest.mark.parametrize("value", [1.0, jnp.nan], ids=str)
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(value):
    loss, params = scanned(), stacked(layers=jnp.full((2, 4, 4), 0.1))
    state = train_state(params, SGD, counts_skipped=True)
    new, _ = jit(released(loss, SGD, skip_nonfinite=True))(state, jnp.full((2, 4), value))
    skipped = int(jnp.isnan(value))
    assert (int(new["skipped"]), int(new["step"])) == (skipped, 1)
    assert bool((new["params"]["head"] == params["head"]).all()) == bool(skipped)


@pytest.mark.parametrize("start", [64.0, 2.0**24], ids=["finite", "overflow"])
def test_a_scaled_loss_is_released_as_the_usual_step_scales_it(start):
    loss, params = in_bytes(None)
    params = jax.tree.map(lambda w: w.astype(jnp.float16), params)
    x = jax.random.normal(jax.random.key(2), (8, 16))
    optimizer = scaled(in_float32(optax.sgd(0.1, 0.9)), start=start)
    old = train_state(params, optimizer)

    def usual(state):
        times = lambda p: loss(p, x) * scale_of(state["opt"])
        slope = jax.grad(times)(state["params"])
        with jax.numpy_dtype_promotion("standard"):
            updates, opt = optimizer.update(slope, state["opt"], state["params"])
        return apply_rounded(state["params"], updates, 0), opt

    new, _ = jit(released(loss, optimizer, micro=2, clip=1e6))(old, x)
    params, opt = jit(usual)(old)
    assert int(new["opt"].skipped) == int(start > 64) and new["opt"].scale == opt.scale
    assert_close(new["params"], params, atol=2e-3)
    assert_close(jax.tree.leaves(new["opt"]), jax.tree.leaves(opt), atol=1e-2)  # steps of float16
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), new["params"], old["params"])
    assert set(jax.tree.leaves(moved)) == {start == 64}


def in_bytes(codec):
    """A model whose stacks fill blocks of 256 numbers, in bfloat16 or encoded."""

    def loss(params, x):
        layer = lambda x, w: (x + jnp.tanh(x @ w["up"]) @ w["down"], None)
        x, _ = jax.lax.scan(layer, x.astype(params["head"].dtype), params["layers"])
        return ((x @ params["head"]).astype(jnp.float32) ** 2).mean()

    shape = lambda *s: jnp.zeros(s, jnp.bfloat16)
    layers = {"up": shape(2, 16, 256), "down": shape(2, 256, 256)[:, :, :16]}
    params = random({"head": shape(16, 16), "layers": layers})
    encode = lambda w: codec.encode(w) if codec else w
    return loss, params | {"layers": jax.tree.map(encode, params["layers"])}


@pytest.mark.parametrize("codec", [None, jm.Int(8), jm.Int(8, group=8)], ids=str)
def test_weights_and_state_in_few_bytes_are_within_a_step_of_their_grid(codec):
    loss, params = in_bytes(codec)
    optimizer = in_int8(optax.adam(1e-2))
    x = jax.random.normal(jax.random.key(2), (8, 16))
    state, value = jit(released(loss, optimizer))(train_state(params, optimizer), x)
    dense = jm.decode(params)
    want, slope = jit(jax.value_and_grad(loss))(dense, x)
    with jax.numpy_dtype_promotion("standard"):
        plain = in_float32(optax.adam(1e-2))
        updates, moments = plain.update(slope, plain.init(dense), dense)
    np.testing.assert_allclose(value, want, rtol=1e-2)
    for name in ("up", "down"):
        old, new = params["layers"][name], state["params"]["layers"][name]
        assert jax.tree.structure(old) == jax.tree.structure(new)
        grid = jnp.abs(new.scale.astype(jnp.float32)).max() if codec else 2**-8
        exact = dense["layers"][name].astype(jnp.float32) + updates["layers"][name]
        error = jm.decode(new).astype(jnp.float32) - exact
        assert jnp.abs(error).max() <= 1.1 * grid and jnp.abs(error).mean() > 0
        assert jnp.abs(error.mean()) < 0.1 * grid
    mu = state["opt"]["state"][0].mu["layers"]["up"].decode()
    np.testing.assert_allclose(mu, moments[0].mu["layers"]["up"], atol=0.03 * jnp.abs(mu).max())


def stacked(**changes):
    layers = jnp.ones((2, 4, 4))
    return {"layers": layers, "other": layers, "head": jnp.ones((4, 4))} | changes


def scanned(change=lambda w: w):
    def loss(params, x):
        layer = lambda x, ws: (jnp.tanh(x @ ws[0] @ ws[1]), None)
        x, _ = jax.lax.scan(layer, x, (params["layers"], change(params["other"])))
        return (x @ params["head"]).mean()

    return loss


def two_layers(params, x):
    return (x @ params["layers"][0] @ params["layers"][1] @ params["head"]).mean()


@pytest.mark.parametrize(
    ("loss", "optimizer", "params", "message"),
    [
        (two_layers, optax.sgd(0.1), stacked(), "found no scan over layers in two_layers"),
        (scanned(), CLIPPED, stacked(), "pass clip= to released"),
        (scanned(lambda w: w.mT), optax.sgd(0.1), stacked(), "as they are stored"),
        (
            lambda p, x: scanned()(p, x) + (p["layers"] ** 2).sum(),
            optax.sgd(0.1),
            stacked(),
            "'layers' is also read outside its scan",
        ),
        (scanned(), optax.sgd(0.1), stacked(steps=jnp.arange(2)), "'steps' is int32"),
    ],
    ids=["no scan", "an optimizer of the whole tree", "transposed", "a penalty", "integers"],
)
def test_what_cannot_be_released_is_refused(loss, optimizer, params, message):
    state = {"params": params, "opt": optimizer.init(params), "step": jnp.zeros((), jnp.int32)}
    with pytest.raises((ValueError, TypeError), match=message):
        jax.eval_shape(released(loss, optimizer), state, jnp.ones((2, 4)))


def test_stacks_are_updated_in_their_own_memory():
    shapes = jax.eval_shape(lambda: dict.fromkeys(("layers", "other"), jnp.ones((16, 64, 64))))
    params = shapes | {"head": jax.ShapeDtypeStruct((64, 4), jnp.float32)}
    x = jax.ShapeDtypeStruct((4, 64), jnp.float32)
    optimizer, temp = optax.sgd(1e-3), {}
    state = jax.eval_shape(lambda params: train_state(params, optimizer), params)
    for step in (released(scanned(), optimizer), usual_step(scanned(), optimizer)):
        temp[step.__qualname__] = jm.memory(jax.jit(step, donate_argnums=0), state, x).temp
    released_bytes, usual_bytes = temp.values()
    gradient = 2 * 64 * 64 * 4  # of one layer
    assert released_bytes < 4 * gradient and usual_bytes > 16 * gradient


def test_a_large_encoded_weight_is_decoded_in_blocks(monkeypatch):
    monkeypatch.setattr("jaxmem.train.traced_step.BLOCK_NUMBERS", 64)
    leaf = jm.Int(8).encode(random(jnp.zeros((24, 16))))
    found = jax.make_jaxpr(in_blocks)(leaf)
    assert "scan" in str(found) or "while" in str(found)
    np.testing.assert_array_equal(in_blocks(leaf), leaf.decode())
