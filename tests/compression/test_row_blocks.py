"""A weight that is encoded block by block has the same codes, and takes little memory beside it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cheap_jit import jit
from contract_codecs import KINDS, assert_same, weight

import jaxmem as jm
from jaxmem.compression import encoding, row_blocks
from jaxmem.core.codec import has_independent_rows, needs_stats

BY_ROWS = [codec for codec in KINDS if has_independent_rows(codec) and not needs_stats(codec)]
QUICK = jm.Int | jm.KMeans | jm.Planes | jm.NM | jm.Csr
each_codec = pytest.mark.parametrize(
    "codec",
    [pytest.param(c, marks=[] if isinstance(c, QUICK) else pytest.mark.slow) for c in BY_ROWS],
    ids=lambda codec: type(codec).__name__,
)


@each_codec
def test_blocks_have_the_codes_of_the_whole(codec, monkeypatch):
    monkeypatch.setattr(row_blocks, "BLOCK_WEIGHTS", 2**9)
    w = weight(2, 24, 45).astype(jnp.bfloat16)
    both = lambda w: (row_blocks.encode_in_blocks(codec, w, (-2,), None), codec.encode(w))
    assert_same(*jit(both)(w))


def test_blocks_of_many_axes_are_cut_along_the_first(monkeypatch):
    monkeypatch.setattr(row_blocks, "BLOCK_WEIGHTS", 2**9)
    w = weight(24, 9, 5)  # a kernel of attention: 9 heads of 5
    both = lambda w: (
        row_blocks.encode_in_blocks(jm.Int(3), w, (0,), None),
        jm.Int(3).encode(w, (0,)),
    )
    assert_same(*jit(both)(w))


def test_which_codec_is_the_smallest_is_not_asked_of_a_block(monkeypatch):
    monkeypatch.setattr(row_blocks, "BLOCK_WEIGHTS", 2**9)
    both = lambda w: (
        row_blocks.encode_in_blocks(jm.sparse(0.3), w, (-2,), None),
        jm.sparse(0.3).encode(w),
    )
    assert_same(*jit(both)(weight(24, 45)))


@pytest.mark.parametrize("codec", [jm.Int(4), jm.KMeans(3), jm.Bitmask(0.5), jm.NM(2, 4)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_program_that_encodes_takes_a_leaf_and_the_result_at_most(codec, dtype):
    w = jax.ShapeDtypeStruct((4096, 2048), dtype)
    memory = encoding._compiled.lower(codec, (-2,), w, None).compile().memory_analysis()
    assert memory.temp_size_in_bytes <= jm.nbytes(w)


@pytest.mark.parametrize("shape, axes", [((24, 45), (-2,)), ((2, 45, 24), (-1,))])
def test_a_large_numpy_weight_is_encoded_like_a_jax_array(shape, axes, monkeypatch):
    monkeypatch.setattr(encoding, "DENSE_WEIGHTS", 2**9)
    w = np.asarray(weight(*shape))
    plan = jm.Plan({"w": jm.Int(3)}, {"w": axes})
    assert_same(jm.encode({"w": w}, plan), jm.encode({"w": jnp.asarray(w)}, plan))
