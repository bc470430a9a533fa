"""The shapes of encoded leaves, which are not traced for every codec."""

import jax
import jax.numpy as jnp
import pytest

import jaxmem as jm
from jaxmem.compression.leaf_shapes import abstract_leaf

BITS_AND_GROUPS = [(bits, group) for bits in range(2, 9) for group in (None, 16)]
CODECS = [jm.Int(bits, group=group, symmetric=bits % 2 > 0) for bits, group in BITS_AND_GROUPS]
CODECS += [jm.GPTQ(jm.Search(jm.Codebook("nf4"))), jm.HQQ(jm.Int(3)), jm.LowRank(2)]


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_the_shapes_of_a_leaf_are_those_that_encode_gives(codec):
    w = jax.ShapeDtypeStruct((2, 20, 11), jnp.bfloat16)
    leaf = abstract_leaf(codec, (-2,), w.shape, jnp.dtype(w.dtype))
    assert leaf == jax.eval_shape(lambda w: codec.encode(w, (-2,)), w)
