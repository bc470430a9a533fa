"""Float and Codebook: the numbers of each format are those of its specification."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from cheap_jit import jit

import jaxmem as jm
from jaxmem.codecs.codebook import FP4, NF4
from jaxmem.codecs.float_formats import exponent, nearest, power

KINDS = {
    "e4m3": (ml_dtypes.float8_e4m3fn, 448),
    "e5m2": (ml_dtypes.float8_e5m2, 57344),
    "e2m1": (ml_dtypes.float4_e2m1fn, 6),
}


@pytest.mark.parametrize("kind", KINDS)
def test_rounding_is_that_of_the_type_and_ties_go_to_even(kind):
    dtype, top = KINDS[kind]
    x = np.random.default_rng(0).normal(size=4096) * np.geomspace(1e-7, top, 4096)
    ties = np.array([0.25, 0.75, 1.25, 2.5, 3.5, 5.0, 1.0625, 17.0, 19.0])
    x = np.concatenate([x, ties, [0.0]]).clip(-top, top).astype("f4")
    np.testing.assert_array_equal(jit(lambda x: nearest(x, kind))(x), x.astype(dtype).astype("f4"))


@pytest.mark.parametrize("kind", KINDS)
def test_every_code_stands_for_its_number(kind):
    numbers = np.arange(16 if kind == "e2m1" else 256, dtype=np.uint8).view(KINDS[kind][0])
    numbers = numbers.astype("f4")
    numbers = np.unique(numbers[np.isfinite(numbers)])
    leaf = jm.Float(kind).encode(jnp.asarray(numbers)[:, None])
    np.testing.assert_array_equal(leaf.decode()[:, 0], numbers)


def test_mx_scales_are_the_powers_of_two_of_the_specification():
    w = jnp.concatenate([jnp.full((32, 1), x) for x in (5.0, -0.3, 2.0**126, 0.0)])
    for name, top in (("mxfp4", 2), ("mxfp8", 8)):
        leaf = jm.Float(name).encode(w)
        assert leaf.scale[:3, 0].tolist() == [127 + e - top for e in (2, -2, 126)]
        assert leaf.decode()[-33::32, 0].tolist() == [2.0**126, 0]


def test_an_nvfp4_matrix_reaches_its_largest_weight():
    w = jnp.asarray(np.random.default_rng(0).normal(size=(64, 8)), jnp.float32)
    leaf = jm.Float("nvfp4").encode(w)
    at = jnp.unravel_index(jnp.abs(w).argmax(), w.shape)
    assert abs(leaf.decode()[at] / w[at] - 1) < 1e-3
    assert 8 * jm.nbytes(leaf) == w.size * 4 + w.size // 16 * 8 + 32


def test_exponents_and_powers_are_exact():
    e = jnp.arange(-126, 128, dtype=jnp.int32)
    assert (power(e) == np.ldexp(np.float32(1), e)).all()
    assert (exponent(power(e) * 1.99) == e).all()


def test_nf4_is_the_published_table():
    assert len(NF4) == len(set(NF4)) == 16 and 0.0 in NF4 and sorted(NF4) == list(NF4)
    assert (
        NF4[1] == -0.6961928009986877 and NF4[-2] == 0.7229568362236023
    )  # the values in QLoRA's code
    assert len(FP4) == 15 and FP4[-2] == 4 / 6


@pytest.mark.parametrize("value, words", [("e3m4", "one of e4m3"), ("nvfp4", "groups of 16")])
def test_an_unknown_format_or_group_is_refused(value, words):
    with pytest.raises(ValueError, match=words):
        jm.Float(value, group=7)


def test_of_equal_bits_the_normal_table_fits_normal_weights_better():
    w = jnp.asarray(np.random.default_rng(0).normal(size=(256, 64)), jnp.float32)
    error = lambda codec: float(((codec.encode(w).decode() - w) ** 2).mean())
    nf4, fp4 = (error(jm.Codebook(name, group=64)) for name in ("nf4", "fp4"))
    assert nf4 < error(jm.Int(4, group=64)) and nf4 < fp4
    assert error(jm.KMeans(4)) < 0.9 * error(jm.Codebook("nf4"))
