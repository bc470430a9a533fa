"""Int: every product is that of the decoded weight, and both ends of a range are used."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cheap_jit import jit

import jaxmem as jm
from jaxmem.codecs.integer import rounded
from jaxmem.codecs.integer_matmul import _digit_product, _product_then_scale
from jaxmem.kernels import decoded_tiles
from jaxmem.kernels.decoded_tiles import cpu_product, decoded_product

CODECS = [jm.Int(bits, symmetric=s) for bits in range(2, 9) for s in (True, False)]
GROUPED = [jm.Int(4, group=10), jm.Int(3, group=16, symmetric=False)]
W = jax.random.normal(jax.random.key(0), (48, 40))
X = jax.random.normal(jax.random.key(1), (4, 48))
PRODUCTS = {
    "cpu, few rows": _digit_product,
    "cpu, groups": cpu_product,
    "gradient, groups": decoded_product,
    "accelerator, per channel": functools.partial(_product_then_scale, precision=None),
    "accelerator, groups": functools.partial(decoded_product, unrolled=2),
}
GROUPED_PRODUCTS = [name for name in PRODUCTS if "groups" in name]


@pytest.mark.parametrize(
    ("codec", "name"),
    [*itertools.product(CODECS, PRODUCTS), *itertools.product(GROUPED, GROUPED_PRODUCTS)],
    ids=str,
)
def test_every_product_is_that_of_the_decoded_weight(codec, name):
    product, leaf = PRODUCTS[name], jit(codec.encode)(W)
    got, want = jit(lambda x, leaf: (product(x, leaf), x @ leaf.rows().T))(X, leaf)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("codec", [*CODECS, *GROUPED, jm.Affine(3, group=16)], ids=str)
def test_tiles_that_do_not_divide_the_rows_are_joined(codec, monkeypatch):
    monkeypatch.setattr(decoded_tiles, "CPU_TILE_WEIGHTS", 1)
    leaf = jit(codec.encode)(jnp.concatenate([W, W[:, :3]], 1))  # tiles of 32 rows and 11 more
    got = jit(cpu_product)(X, leaf)
    np.testing.assert_allclose(got, X @ jm.decode(leaf), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("product", PRODUCTS.values(), ids=PRODUCTS)
def test_half_precision_inputs_are_summed_in_full_precision(product):
    leaf, x = jit(jm.Int(8).encode)(W), X.astype(jnp.bfloat16)
    got = jit(product)(x, leaf)
    assert got.dtype == jnp.float32
    exact = np.asarray(x, np.float64) @ np.asarray(jm.decode(leaf), np.float64)
    np.testing.assert_allclose(got, exact, rtol=1e-2, atol=1e-1)


def test_digits_keep_an_input_with_an_outlier():
    leaf, x = jit(jm.Int(8).encode)(W), X.at[0, 3].set(3000.0)
    got = jit(_digit_product)(x, leaf)
    exact = np.asarray(x, np.float64) @ np.asarray(jm.decode(leaf), np.float64)
    assert np.abs(got - exact).max() <= 3000 * 2**-22 * np.abs(jm.decode(leaf)).sum(0).max()


def test_a_row_that_is_not_finite_stays_so_and_spoils_no_other():
    leaf = jit(jm.Int(8).encode)(W)
    got = jit(_digit_product)(X.at[1, 0].set(jnp.nan).at[2, 0].set(jnp.inf), leaf)
    assert np.isfinite(got).all(1).tolist() == [True, False, False, True]


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_the_ends_of_the_range_are_codes(codec):
    leaf = jit(codec.encode)(W)
    spread = jm.decode(leaf) / leaf.scale.astype(jnp.float32)  # in steps
    if codec.symmetric:
        assert (jnp.abs(spread).max(0).round() == 2 ** (codec.bits - 1) - 1).all()
    else:
        assert (jnp.ptp(spread, axis=0).round() >= 2**codec.bits - 2).all()


@pytest.mark.parametrize(
    "make, wrong",
    [
        (lambda: jm.Int(1), "got 1"),
        (lambda: jm.Int(9), "got 9"),
        (lambda: jm.Int(4, group=0), "got 0"),
        (lambda: jm.Cast("int8"), "got int8"),
        (lambda: jm.LowRank(0), "got 0"),
        (lambda: jm.Chain(()), "got none"),
        (lambda: jm.LowRank(9).encode(jnp.ones((16, 16))), "saves nothing on a 16 x 16"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(make, wrong):
    with pytest.raises(ValueError, match=wrong):
        make()


@pytest.mark.parametrize("codecs", [(jm.Int(8), jm.Int(4)), (jm.Cast("bfloat16"), jm.Int(4))])
def test_a_codec_that_leaves_no_floats_must_come_last(codecs):
    with pytest.raises(TypeError, match="comes last"):
        jm.Chain(codecs).encode(W)


def test_codes_of_eight_bits_are_read_right_in_the_program_that_wrote_them():
    codec, w = jm.Int(8, group=16), jax.random.normal(jax.random.key(0), (2048, 32))
    lost = jax.jit(lambda w: jnp.square(w - codec.encode(w, (-1,)).decode()).sum())
    assert lost(w) < 1e-4 * jnp.square(w).sum()


@pytest.mark.parametrize(("codec", "ties"), [(jm.Int(8), 0), (jm.Int(8, group=16), 1)], ids=str)
def test_a_product_that_reads_stored_codes_is_not_tied_to_its_input(codec, ties):
    w = codec.encode(jnp.ones((32, 16)), (-2,))
    text = jax.jit(jm.lift(jnp.dot)).lower(jnp.ones((4, 32)), w).as_text()
    assert text.count("optimization_barrier") == ties


@pytest.mark.parametrize("symmetric", [True, False])
def test_values_of_any_traced_bits_are_those_of_the_leaf(symmetric):
    w = jax.random.normal(jax.random.key(3), (8, 40))
    values = jit(lambda w: jax.lax.map(lambda b: rounded(w, b, 16, symmetric), jnp.arange(2, 9)))(w)
    for bits, value in zip(range(2, 9), values):
        leaf = jm.Int(bits, group=16, symmetric=symmetric).encode(w, (-1,))
        np.testing.assert_allclose(value, jm.decode(leaf), rtol=1e-6)
