"""Leaves of Int as QArrays and back, against qwix's own formula."""

import sys

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from cheap_jit import jit

import jaxmem as jm
from jaxmem.interop import from_qwix, to_qwix

pytestmark = pytest.mark.client

CODECS = [jm.Int(4), jm.Int(4, group=16), jm.Int(4, group=16, symmetric=False), jm.Int(3, group=8)]
CODECS += [jm.Int(8), jm.Int(8, group=32, symmetric=False), jm.Int(2, symmetric=False), jm.Int(6)]
FORMS = {"kernel": ((64, 24), (-2,)), "stack": ((3, 64, 24), (-2,)), "table": ((24, 64), (-1,))}
FORMS["heads"] = ((2, 64, 3, 8), (-3,))


def weight(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def qwix():
    return pytest.importorskip("qwix")


@pytest.mark.parametrize("codec, form", list(zip(CODECS, [*FORMS] * 2)), ids=str)
def test_a_qarray_stands_for_what_the_leaf_stands_for_and_comes_back(codec, form, qwix):
    shape, axes = FORMS[form]
    leaf = jit(lambda w: codec.encode(w, axes))(weight(*shape))
    made = to_qwix(leaf)
    assert made.qvalue.dtype == (jnp.int4 if codec.bits <= 4 else jnp.int8)
    np.testing.assert_array_equal(qwix.dequantize(made), jm.decode(leaf))
    back = from_qwix(made)
    np.testing.assert_array_equal(jm.decode(back), jm.decode(leaf))
    assert back.fold == leaf.fold and back.scale.dtype == jnp.float16
    if codec.bits in (4, 8):
        chex.assert_trees_all_equal(back, leaf, strict=True)


@pytest.mark.parametrize("tiled", [{}, {0: 16}])
@pytest.mark.parametrize("qtype", ["int4", "int8"])
def test_what_qwix_quantized_is_a_leaf(qtype, tiled, qwix):
    w = jnp.asarray(weight(64, 24))
    made = qwix.quantize(w, jnp.dtype(qtype), channelwise_axes=(1,), tiled_axes=tiled)
    leaf = from_qwix(made)
    np.testing.assert_array_equal(jm.decode(leaf), qwix.dequantize(made))
    x = weight(3, 64, seed=1)
    y = jit(jm.lift(jnp.matmul, on_decode="error"))(x, leaf)
    np.testing.assert_allclose(y, x @ qwix.dequantize(made), rtol=1e-4, atol=1e-4)


def test_a_whole_axis_of_two_may_be_summed(qwix):
    leaf = jm.Int(8).encode(weight(4, 6, 10), (0, 1))
    np.testing.assert_array_equal(qwix.dequantize(to_qwix(leaf)), jm.decode(leaf))
    np.testing.assert_array_equal(jm.decode(from_qwix(to_qwix(leaf))), jm.decode(leaf))


def test_what_a_qarray_cannot_hold_is_refused(qwix):
    with pytest.raises(ValueError, match="groups of 10 do not divide"):
        to_qwix(jm.Int(4, group=10).encode(weight(64, 8)))
    with pytest.raises(ValueError, match="groups of 8 do not divide"):
        to_qwix(jm.Int(4, group=8).encode(weight(4, 8, 8), (0, 1)))
    with pytest.raises(TypeError, match="leaf is a CodebookArray, expected an IntArray"):
        to_qwix(jm.Codebook("nf4").encode(weight(64, 8)))


def test_what_a_leaf_cannot_hold_is_refused(qwix):
    with pytest.raises(TypeError, match="int2, int4 and int8"):
        from_qwix(qwix.quantize(jnp.asarray(weight(64, 8)), "nf4", channelwise_axes=(1,)))
    one = qwix.QArray(jnp.ones((4, 4), jnp.int8), jnp.ones((4, 4)))
    with pytest.raises(ValueError, match="expected groups of one axis"):
        from_qwix(one)


def test_a_missing_qwix_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(ImportError, match=r'pip install "jaxmem\[qwix\]"'):
        to_qwix(jm.Int(4).encode(weight(8, 8)))
