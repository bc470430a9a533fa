"""Planes, Sum, DoubleQuant and KMeans: their bytes, their errors, and the arguments they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cheap_jit import jit

import jaxmem as jm
from jaxmem.codecs.dynamic_quantization import DynamicArray
from jaxmem.codecs.sum import SumArray
from jaxmem.core.segmented import Segmented


def weight(*shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def test_dropping_planes_takes_no_copy_of_the_weights():
    leaf = jm.Planes(group=16).encode(weight(64, 32))
    inside = DynamicArray(leaf, None, "int8"), SumArray((leaf, leaf)), Segmented((leaf, leaf))
    enc = {"w": leaf, "in": inside, "b": jnp.ones(3)}
    less = jm.at_bits(enc, 4)
    arrays = {id(x) for x in jax.tree.leaves(enc)}
    assert {id(x) for x in jax.tree.leaves(less)} < arrays
    assert jm.nbytes(enc) - jm.nbytes(less) == 6 * 64 * 32 // 2


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_upper_bits_are_the_codes_of_fewer_cells(bits):
    w = jnp.linspace(-1, 1, 257)[:256, None] + 1 / 1024
    low, high = float(w.min()), float(w.max())
    cells = np.floor((np.asarray(w) - low) / (high - low) * 2**bits).clip(0, 2**bits - 1)
    middles = low + (cells + 0.5) * (high - low) / 2**bits
    got = jit(lambda w: jm.at_bits(jm.Planes().encode(w), bits).decode())(w)
    assert np.abs(got - middles).max() <= (2 ** (8 - bits) + 1) * (high - low) / 2**bits / 2


def test_fewer_bits_are_further_away_and_six_are_as_good_as_made_apart():
    w = weight(256, 64)
    rms = lambda leaf: float(jnp.sqrt(((jm.decode(leaf) - w) ** 2).mean()))
    enc = jm.Planes(group=64).encode(w)
    errors = [rms(jm.at_bits(enc, b)) for b in range(8, 1, -1)]
    assert errors == sorted(errors)
    assert errors[2] < 1.02 * rms(jm.Int(6, group=64, symmetric=False).encode(w))


@pytest.mark.parametrize("tree, bits", [({"w": 1}, 4), (jm.Planes().encode(jnp.ones((8, 8))), 9)])
def test_at_bits_refuses_a_tree_or_bits_that_it_cannot_cut(tree, bits):
    with pytest.raises(ValueError, match="at_bits"):
        jm.at_bits(tree, bits)


def test_planes_that_were_dropped_do_not_come_back():
    less = jm.at_bits(jm.Planes().encode(jnp.ones((8, 8))), 3)
    with pytest.raises(ValueError, match="5 bits of a leaf that has 3"):
        jm.at_bits(less, 5)


def test_a_sum_is_its_parts_and_its_bytes_are_theirs():
    w = weight(64, 48)
    leaf = jm.Sum((jm.Int(4, group=16), jm.LowRank(8))).encode(w)
    assert jm.nbytes(leaf) == sum(map(jm.nbytes, leaf.parts))
    np.testing.assert_allclose(jm.decode(leaf), sum(jm.decode(p) for p in leaf.parts), atol=1e-6)
    near = lambda leaf: float(((jm.decode(leaf) - w) ** 2).sum())
    assert near(leaf) < 0.8 * near(leaf.parts[0])


@pytest.mark.parametrize("scales", [(), (jm.Int(8, group=256, symmetric=False),)], ids=str)
def test_double_quantized_scales_cost_an_eighth_of_a_bit(scales):
    w = weight(512, 256)
    once = jm.Codebook("nf4", group=64)
    twice = jm.DoubleQuant(once, *scales)
    bits = [8 * jm.nbytes(c.encode(w)) / w.size for c in (once, twice)]
    assert bits[0] == 4.25 and bits[1] < 4.13
    error = [float(((jm.decode(c.encode(w)) - w) ** 2).mean()) for c in (once, twice)]
    assert error[1] < 1.01 * error[0]


def test_floats_keep_the_scales_of_small_channels_and_integers_do_not():
    w = weight(64, 16) * jnp.geomspace(1e-4, 1, 16)[None]
    size = lambda w: jnp.linalg.norm(w, axis=0)
    error = lambda codec: size(jm.decode(codec.encode(w)) - w) / size(w)
    nf4 = jm.Codebook("nf4", group=16)
    assert (error(jm.DoubleQuant(nf4)) < 1.2 * error(nf4)).all()
    assert error(jm.DoubleQuant(nf4, jm.Int(8)))[0] == 1  # everything is lost


def test_a_codec_without_float_scales_is_refused():
    with pytest.raises(TypeError, match="no float scales"):
        jm.DoubleQuant(jm.KMeans(3))
    with pytest.raises(TypeError, match="no float scales"):
        jm.DoubleQuant(jm.Float("mxfp4"), jm.Int(8)).encode(weight(64, 32))
    with pytest.raises(ValueError, match="at least two codecs"):
        jm.Sum((jm.Int(4),))


def test_kmeans_weighs_errors_by_the_inputs_of_the_weight():
    w, x = weight(64, 8), weight(256, 64, seed=1) * jnp.geomspace(0.01, 10, 64)[None]
    stats = jm.stats(lambda p, x: x @ p["w"], {"w": w}, [(x,)], moments="diag")["w"]
    loss = lambda leaf: float((((jm.decode(leaf) - w) ** 2) * stats.diag[:, None]).sum())
    assert loss(jm.KMeans(2).encode(w, stats=stats)) < 0.9 * loss(jm.KMeans(2).encode(w))
