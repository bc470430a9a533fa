"""Bits flip as often as they should, in the arrays that they should, and back with the same key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmem as jm
from jaxmem.evaluation import flip_bits
from jaxmem.evaluation.flipped_bits import parts_of

W = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
KEY = jax.random.key(3)
CODECS = {
    "int8": (jm.Int(8), ("codes", "scales")),
    "int4": (jm.Int(4, group=16), ("codes", "scales")),
    "nf4": (jm.Codebook("nf4", group=16), ("codes", "scales")),
    "bitmask": (jm.Bitmask(0.5), ("scales", "masks")),
    "dense": (None, ("weights",)),
}


def bits_of(tree):
    """All bits of a tree's arrays, one byte a number of less than a byte."""
    arrays = [np.ascontiguousarray(x) for x in jax.tree.leaves(jax.device_get(tree))]
    return np.unpackbits(np.concatenate([x.reshape(-1).view(np.uint8) for x in arrays]))


@pytest.mark.parametrize("name", CODECS)
def test_the_same_key_flips_the_same_bits_and_so_flips_them_back(name):
    codec, parts = CODECS[name]
    tree = {"w": codec.encode(jnp.asarray(W)) if codec else jnp.asarray(W)}
    assert parts_of(tree) == parts
    for part in parts:
        once = flip_bits(tree, 0.01, KEY, parts=[part])
        assert 0 < (bits_of(once) != bits_of(tree)).mean() < 0.02
        assert (bits_of(flip_bits(once, 0.01, KEY, parts=[part])) == bits_of(tree)).all()
        other = [x for x in parts if x != part]
        rest = flip_bits(once, 1.0, KEY, parts=other) if other else once
        assert jax.tree.map(jnp.shape, rest) == jax.tree.map(jnp.shape, tree)
    assert flip_bits(tree, 0.0, KEY)["w"] is tree["w"] or codec


@pytest.mark.parametrize("dtype", ["int4", "uint4", "int8", "bfloat16", "float32", "bool", "int32"])
def test_every_bit_of_a_number_may_flip_and_no_other(dtype):
    zeros = jnp.zeros((40, 100), dtype)
    width = {"int4": 4, "uint4": 4, "bool": 1}.get(dtype, 8 * zeros.dtype.itemsize)
    flipped = flip_bits(zeros, 0.25, KEY)
    assert flipped.dtype == zeros.dtype
    raw = np.asarray(flipped)
    raw = raw.astype(np.int8) if width < 8 else raw
    counts = np.unpackbits(raw.view(np.uint8).reshape(4000, -1), axis=1, bitorder="little")
    assert counts[:, :width].mean(0) == pytest.approx(0.25, abs=0.04)
    if not jnp.issubdtype(zeros.dtype, jnp.floating):
        assert bool((flip_bits(zeros, 1.0, KEY) == ~zeros).all())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"rate": 1.5}, "rate is 1.5, expected 0 to 1"), ({"parts": ["code"]}, "expected some of")],
)
def test_what_cannot_flip_is_said(options, message):
    with pytest.raises(ValueError, match=message):
        flip_bits({"w": W}, **({"rate": 0.1, "key": KEY} | options))
