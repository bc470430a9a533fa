"""Losses, accumulation, adapters and few-bit optimizer state, against what they replace."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from quick import jit

import jaxmem as jm
from jaxmem.adapters.lora import adapters, attach
from jaxmem.optimizers.bfloat16_state import in_bfloat16
from jaxmem.optimizers.float32_state import in_float32
from jaxmem.optimizers.int8_state import encoded, in_int8
from jaxmem.optimizers.stochastic_rounding import apply_rounded, stochastic_round
from jaxmem.train.chunked_cross_entropy import next_token_loss
from jaxmem.train.gradient_accumulation import accumulate

pytestmark = pytest.mark.usefixtures("quickly_compiled")

KEY = jax.random.key(0)


def normal(*shape):
    return jax.random.normal(KEY, shape)


def test_the_chunked_loss_and_its_gradient_are_the_whole_ones():
    x, head, ids = normal(2, 8, 16), normal(16, 24), jnp.arange(16, dtype=jnp.int32).reshape(2, 8)

    def whole(x, head):
        logp = jax.nn.log_softmax(x[:, :-1] @ head)
        return -jnp.take_along_axis(logp, ids[:, 1:, None], -1).mean()

    chunked = lambda x, head: next_token_loss(x, head, ids, chunk=4)
    got, want = (jit(jax.value_and_grad(f, (0, 1)))(x, head) for f in (chunked, whole))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)
    tied = next_token_loss(x, head.T, ids, axis=1, chunk=2)
    np.testing.assert_allclose(tied, want[0], rtol=1e-6)


def test_a_chunk_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="chunk of 3 positions does not divide the 8"):
        next_token_loss(normal(1, 8, 4), normal(4, 6), jnp.zeros((1, 8), jnp.int32), chunk=3)


def test_accumulated_gradients_are_the_batchs():
    w, x = normal(16, 4), normal(8, 16)
    loss = lambda w, x: (jnp.tanh(x @ w) ** 2).mean()
    got, want = (jit(accumulate(loss, n))(w, x) for n in (4, 1))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), got, want)
    with pytest.raises(ValueError, match="3 micro-batches of"):
        accumulate(loss, 3)(w, x)


@pytest.mark.parametrize("codec", [jm.Int(4), jm.Int(8), None], ids=str)
def test_adapters_train_and_the_frozen_weight_is_part_of_the_sum(codec):
    w = normal(32, 24)
    params = {"kernel": codec.encode(w) if codec else w}
    pairs = adapters(KEY, params, 4)
    run = jm.lift(lambda p, x: x @ p["kernel"])
    x, dense = normal(5, 32), jm.decode(params)["kernel"]
    np.testing.assert_allclose(run(attach(params, pairs), x), x @ dense, rtol=1e-4, atol=1e-4)
    slopes = jit(jax.grad(lambda p: (run(attach(params, p), x) ** 2).sum()))(pairs)["kernel"]
    y = x @ dense
    want = 2 * y.T @ (x @ pairs["kernel"]["v"].T)
    np.testing.assert_allclose(slopes["u"], want, rtol=1e-3, atol=1e-2)
    assert not slopes["v"].any()  # u is zero at first


def test_adapters_of_a_stack_have_its_axis_and_a_wrong_path_is_refused():
    params = {"layers": {"kernel": jnp.ones((3, 32, 24))}, "bias": jnp.ones(3)}
    pairs = adapters(KEY, params, 2)
    assert pairs["layers/kernel"]["v"].shape == (3, 2, 32)
    assert attach(params, pairs)["layers"]["kernel"].shape == (3, 32, 24)
    with pytest.raises(ValueError, match="adapters name 'head', which is no weight"):
        attach(params, {"head": pairs["layers/kernel"]})


def test_rounding_is_right_on_average_and_keeps_what_bfloat16_holds():
    x = jnp.linspace(-3, 3, 50_001)
    mean = jnp.stack([stochastic_round(x, s).astype("f4") for s in range(64)]).mean(0)
    assert jnp.abs(mean - x).mean() < 0.25 * jnp.abs(x.astype(jnp.bfloat16).astype("f4") - x).mean()
    held = x.astype(jnp.bfloat16)
    np.testing.assert_array_equal(stochastic_round(held.astype("f4"), 5), held)
    assert jnp.isinf(stochastic_round(jnp.array([jnp.inf]), 1)).all()


def test_a_byte_a_number_is_right_on_average_and_never_rounds_to_zero():
    x = jnp.exp(-12 * jnp.linspace(0, 1, 4096)).reshape(16, 256) * jnp.sign(normal(16, 256))
    mean = jnp.stack([encoded(x, s).decode() for s in range(64)]).mean(0)
    once = jnp.abs(encoded(x, 0).decode() - x)
    assert jnp.abs(mean - x).mean() < 0.25 * once.mean()
    assert (jnp.sign(encoded(x, 0).codes.astype("f4")) == jnp.sign(x)).all()
    assert not jnp.any(encoded(jnp.zeros((16, 256)), 0).decode())


HELD = [(in_float32, 8), (in_bfloat16, 4), (in_int8, 2 + 2 / 64)]


@pytest.mark.parametrize(("hold", "bytes_each"), HELD)
def test_adam_reaches_the_minimum_with_its_state_in_few_bits(hold, bytes_each):
    optimizer = hold(optax.adam(0.02))
    target = normal(16, 256)
    params = {"w": jnp.zeros((16, 256), jnp.bfloat16)}
    state = optimizer.init(params)
    assert 0 <= jm.nbytes(state) - bytes_each * target.size <= 8

    @jit
    def step(params, state, i):
        slope = jax.grad(lambda p: ((p["w"].astype("f4") - target) ** 2).sum())(params)
        updates, state = optimizer.update(slope, state, params)
        return apply_rounded(params, updates, i), state

    for i in range(300):
        params, state = step(params, state, i)
    assert jnp.abs(params["w"].astype("f4") - target).mean() < 0.02
