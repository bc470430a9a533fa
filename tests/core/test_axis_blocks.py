"""A function by blocks of an axis gives what the function gives, and keeps no whole temporaries."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cheap_jit import jit

import jaxmem as jm
from jaxmem.core.axis_blocks import AxisBlocks
from jaxmem.optimizers import apply_rounded, in_bfloat16, in_int8, scale_sgd
from jaxmem.optimizers.split_leaf import split_weight

N = 384  # entries of the axis: blocks of 256 and a rest


def random(shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def update(optimizer, path, param):
    """(a step of one param on flat arrays, those arrays, {result: the argument it replaces})."""
    nested = lambda x: {path[0]: {path[1]: x}}
    dense = jm.decode(param)
    state = optimizer.init(nested(dense))
    leaves, tree = jax.tree.flatten((param, dense * 0.1, state))
    n = len(jax.tree.leaves(param))

    def step(*arrays):
        param, grad, state = tree.unflatten(arrays)
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(nested(grad), state, nested(jm.decode(param)))
        return jax.tree.leaves((apply_rounded(nested(param), updates, 3), state))

    places = {i: i if i < n else i + 1 for i in range(len(leaves) - 1)}
    return step, leaves, places


HEAD, EMBED = ("head", "kernel"), ("embed", "embedding")
MOMENTS = optax.adamw(1e-2, weight_decay=0.1)


FORMS = {
    "bfloat16": (in_bfloat16(MOMENTS), lambda w: w.astype(jnp.bfloat16)),
    "split": (in_int8(MOMENTS), split_weight),
    "SCALE": (in_int8(scale_sgd(1e-2)), jm.Int(8).encode),
    "adafactor": (optax.adafactor(1e-2, min_dim_size_to_factor=8), lambda w: w),
}


@pytest.mark.parametrize(
    ("path", "shape", "form"),
    [
        (HEAD, (64, N), "bfloat16"),
        (HEAD, (64, N), "split"),
        (HEAD, (64, N), "SCALE"),
        (EMBED, (N, 64), "SCALE"),
        (EMBED, (N, 64), "adafactor"),
    ],
    ids=str,
)
def test_an_update_in_blocks_is_the_update(path, shape, form):
    optimizer, encode = FORMS[form]
    step, args, places = update(optimizer, path, encode(random(shape)))
    blocks = AxisBlocks.of(step, args, N)
    found = jit(lambda *args: blocks.run(args, places, 256))(*args)
    for x, y in zip(found, jit(step)(*args), strict=True):
        assert x.dtype == y.dtype
        a, b = x.astype(jnp.float32), y.astype(jnp.float32)
        # A sum in another order may move a number over the middle between two codes.
        far = jnp.abs(a - b) > 1e-5 * jnp.abs(b) + 1e-6
        assert far.mean() < 0.002


@pytest.mark.parametrize(
    "fn",
    [lambda x: [x @ x.T @ x], lambda x: [jnp.sort(x, 0)], lambda x: [x[::-1]]],
    ids=["product", "sort", "reversed"],
)
def test_what_needs_several_entries_at_once_is_not_cut(fn):
    assert AxisBlocks.of(fn, [random((N, 8))], N) is None


def test_blocks_take_the_memory_of_the_arguments():
    step, args, places = update(
        in_int8(scale_sgd(1e-2)), EMBED, jm.Int(8).encode(random((4096, 64)))
    )
    blocks = AxisBlocks.of(step, args, 4096)
    run = jax.jit(lambda *args: blocks.run(args, places, 256), donate_argnums=(0, 1, 3, 4))
    temp = lambda fn: jm.memory(fn, *args).temp
    assert temp(run) < 0.2 * temp(jax.jit(step, donate_argnums=(0, 1, 3, 4)))


def test_random_bits_are_those_of_the_whole():
    from jaxmem.optimizers.stochastic_rounding import stochastic_round

    x = random((N, 16))
    blocks = AxisBlocks.of(lambda x: [stochastic_round(x, 5)], [x], N)
    np.testing.assert_array_equal(
        blocks.run([x], {}, 100)[0].astype(jnp.float32), stochastic_round(x, 5).astype(jnp.float32)
    )
