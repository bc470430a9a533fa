"""The compiled products of 4-bit levels and 8-bit floats are those with the decoded weight."""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmem as jm
from jaxmem.cpu_kernels.scaled_rows import scaled_rows_product

pytestmark = pytest.mark.skipif(jm.native().instruction_set is None, reason=jm.native().reason)

assert_close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
decoded = lambda x, leaf: jnp.matmul(x, leaf.rows().T, precision="highest")
product = functools.partial(scaled_rows_product, otherwise=decoded)


def random(*shape):
    return jnp.asarray(np.random.default_rng(sum(shape)).standard_normal(shape, np.float32))


@pytest.mark.parametrize(
    ("codec", "m", "k", "n"),
    [
        (jm.Codebook("nf4", group=64), 1, 200, 9),  # a short last group, a row without a second
        (jm.Codebook("nf4", group=64), 500, 200, 41),  # a prompt
        (jm.Codebook("fp4"), 3, 33, 8),
        (jm.Float("e2m1", group=7), 8, 20, 4),
        (jm.Float("mxfp4"), 1, 64, 6),
        (jm.Float("nvfp4"), 2, 64, 6),
        (jm.Float("e4m3"), 1, 70, 5),
        (jm.Float("e4m3"), 40, 70, 5),
        (jm.Float("e5m2", group=40), 5, 96, 3),
        (jm.Float("mxfp8"), 2, 64, 3),
    ],
    ids=str,
)
def test_the_compiled_product_is_that_with_the_decoded_weight(codec, m, k, n):
    leaf, x = codec.encode(random(k, n)), random(m, k)
    rows, got = jax.device_get((jax.jit(lambda leaf: leaf.rows())(leaf), product(x, leaf)))
    bound = np.abs(x) @ np.abs(rows).T * 2.0**-20
    assert (np.abs(got - np.asarray(x) @ rows.T) <= bound).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_values_times_the_largest_inputs_do_not_overflow(sign):
    leaf = jm.Codebook("nf4", group=64).encode(jnp.full((192, 8), float(sign)))
    y = product(jnp.full((1, 192), 0.9921), leaf)
    np.testing.assert_allclose(y, 192 * 0.9921 * sign * np.ones((1, 8)), rtol=2e-6)


@pytest.mark.parametrize("size", [1, 2.0**-100, 2.0**100], ids=["x", "a small x", "a large x"])
def test_the_smallest_floats_are_not_lost(size):
    leaf = jm.Float("e4m3").encode(jnp.array([[448.0], [2.0**-9], [-3 * 2.0**-9]]))
    y = product(jnp.eye(3)[1:] * size, leaf)[:, 0]
    np.testing.assert_array_equal(y, np.array([2.0**-9, -3 * 2.0**-9]) * size)


@pytest.mark.parametrize(
    ("codec", "rows"),
    [
        (jm.Codebook("nf4", group=16), 8),
        (jm.Codebook("nf4", group=16), 100),
        (jm.Float("e4m3"), 1),
        (jm.DoubleQuant(jm.Codebook("nf4", group=16)), 1),
    ],
    ids=str,
)
def test_a_matmul_calls_the_library(codec, rows):
    run = jax.jit(jm.lift(jnp.matmul)).lower(random(rows, 32), codec.encode(random(32, 8)))
    assert "jaxmem_scaled_rows" in run.as_text()


@pytest.mark.parametrize(("x_axis", "leaf_axis"), [(0, 0), (0, None), (None, 0)])
def test_vmap_maps_x_or_the_weight_or_both(x_axis, leaf_axis):
    leaf = jm.Float("e4m3").encode(random(*((3,) if leaf_axis == 0 else ()), 40, 16))
    x = random(*((3,) if x_axis == 0 else ()), 1, 40)
    y = jax.vmap(product, (x_axis, leaf_axis))(x, leaf)
    for i in range(3):
        part = leaf if leaf_axis is None else jax.tree.map(operator.itemgetter(i), leaf)
        assert_close(y[i], product(x if x_axis is None else x[i], part))


def test_a_row_that_is_not_finite_changes_no_other_row():
    leaf, x = jm.Codebook("nf4").encode(random(32, 8)), random(2, 32).at[1, 3].set(jnp.nan)
    y = product(x, leaf)
    assert_close(y[0], product(x[:1], leaf)[0])
    assert jnp.isnan(y[1]).all()


def test_the_gradient_is_that_of_the_decoded_weight():
    leaf, x = jm.Codebook("nf4", group=16).encode(random(32, 16)), random(1, 32)
    got = jax.grad(lambda x: jnp.square(jm.lift(jnp.matmul)(x, leaf)).sum())(x)
    want = jax.grad(lambda x: jnp.square(x @ jm.decode(leaf)).sum())(x)
    assert_close(got, want)
