"""A weight that is encoded block by block has the same codes, and takes little memory beside it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cheap_jit import jit
from contract_codecs import KINDS, assert_same, weight

import jaxmem as jm
from jaxmem.compression import encoding, row_blocks
from jaxmem.compression.shared_memory import in_place, strided
from jaxmem.core import layer_encoding, row_slices
from jaxmem.core.codec import has_independent_rows, needs_stats
from jaxmem.io.aligned_memory import aligned
from jaxmem.solvers.pruning_scores import magnitude

BY_ROWS = [codec for codec in KINDS if has_independent_rows(codec) and not needs_stats(codec)]
QUICK = jm.Int | jm.KMeans | jm.Planes | jm.NM | jm.Csr


def name_of(codec):
    """The codec as text, which is the same in every process: a function has no address in it."""
    return re.sub(r" at 0x\w+", "", str(codec))


each_codec = pytest.mark.parametrize(
    "codec",
    [pytest.param(c, marks=[] if isinstance(c, QUICK) else pytest.mark.slow) for c in BY_ROWS],
    ids=lambda codec: type(codec).__name__,
)


@each_codec
def test_blocks_have_the_codes_of_the_whole(codec, monkeypatch):
    monkeypatch.setattr(row_slices, "BLOCK_WEIGHTS", 2**9)
    w = weight(2, 24, 45).astype(jnp.bfloat16)
    both = lambda w: (row_blocks.encode_in_blocks(codec, w, (-2,), None), codec.encode(w))
    assert_same(*jit(both)(w))


FITS = [
    jm.Int(4),
    jm.NM(2, 4),
    jm.Float("nvfp4"),
    jm.Blocks(0.5),
    jm.Coo(0.01),
    jm.DoubleQuant(jm.Codebook("nf4", group=64)),
    jm.Smooth(jm.Int(8)),
    jm.GPTQ(jm.Int(4, group=64)),
    jm.Sum((jm.Int(4), jm.LowRank(32))),
]
FITS_SLOWLY = [
    jm.LowRank(32),
    jm.QERA(jm.Int(3, group=64), 32),
    jm.Prune(jm.Bitmask(0.5), magnitude),
    jm.KMeans(3),
    jm.Planes(group=64),
    jm.Bitmask(0.5),
    jm.Cast("bfloat16"),
    jm.Inputs(0.5),
    jm.Outputs(0.5),
    jm.Sum((jm.Coo(0.005), jm.Int(3, group=64))),
    jm.Fake(jm.Int(4), learn=True),
    jm.RIA(jm.NM(2, 4)),
    jm.Permute(jm.Refit(jm.SparseGPT(jm.NM(2, 4)))),
]
GRAM_COPIES = {
    jm.GPTQ: 4,
    jm.Permute: 6,
    jm.QERA: 4,
}  # matrices (k, k) that a solver makes of the stats
WHOLE_SEEN_FIRST = [
    jm.Float("nvfp4"),
    jm.Blocks(0.5, block=(16, 8)),
    jm.Inputs(0.5, size=4),
    jm.Outputs(0.5, size=4),
    jm.Coo(0.1),
    jm.Chain((jm.Coo(0.1), jm.Int(8))),
    jm.Sum((jm.Coo(0.1), jm.Int(4))),
    jm.Sum((jm.LowRank(4), jm.Int(4))),
    jm.DoubleQuant(jm.Int(4, group=16), jm.Int(8, group=16)),
    jm.Fake(jm.Int(4, group=16), learn=True),
    jm.Dynamic(jm.Float("nvfp4")),
    jm.Smooth(jm.Int(4)),
    jm.Wanda(jm.NM(2, 4)),
    jm.RIA(jm.NM(2, 4)),
    jm.Prune(jm.Bitmask(0.5), lambda matrix, stats: abs(matrix) / abs(matrix).max(0)[None]),
    jm.Permute(jm.NM(2, 4), steps=2),
    jm.GPTQ(jm.Int(4, group=16)),
    jm.SparseGPT(jm.NM(2, 4)),
]
ALSO_QUICK = jm.Float | jm.Outputs | jm.Coo | jm.GPTQ


def moments(k):
    """The moments of 100 random inputs of k numbers."""
    x = weight(100, k, seed=1)
    return jm.Moments(x.T @ x / 100, x.mean(0), jnp.abs(x).max(0), jnp.float32(100))


@pytest.mark.parametrize(
    "codec",
    [
        pytest.param(c, marks=[] if isinstance(c, ALSO_QUICK) else pytest.mark.slow)
        for c in WHOLE_SEEN_FIRST
    ],
    ids=name_of,
)
def test_what_needs_all_rows_is_found_first_and_changes_no_code(codec, monkeypatch):
    monkeypatch.setattr(row_slices, "BLOCK_WEIGHTS", 2**10)
    monkeypatch.setattr(layer_encoding, "LEAST_BLOCKS", 4)
    w = weight(48, 88).astype(jnp.bfloat16)
    stats = moments(48) if needs_stats(codec) else None
    both = lambda w: (
        row_blocks.encode_in_blocks(codec, w, (-2,), stats),
        codec.encode(w, stats=stats),
    )
    assert_same(*jit(both)(w))


@pytest.mark.parametrize(
    "codec",
    [
        jm.Sum((jm.Int(4), jm.LowRank(4))),
        pytest.param(jm.QERA(jm.Coo(0.1), 4, factors=None), marks=pytest.mark.slow),
    ],
    ids=name_of,
)
def test_the_error_of_a_part_is_read_by_rows(codec, monkeypatch):
    monkeypatch.setattr(row_slices, "BLOCK_WEIGHTS", 2**10)
    w, stats = weight(48, 88), moments(48)
    blocks = jit(lambda w: row_blocks.encode_in_blocks(codec, w, (-2,), stats).decode())(w)
    monkeypatch.undo()
    whole = jit(lambda w: codec.encode(w, stats=stats).decode())(w)
    assert jnp.abs(blocks - whole).max() < 1e-4


def test_blocks_of_many_axes_are_cut_along_the_first(monkeypatch):
    monkeypatch.setattr(row_slices, "BLOCK_WEIGHTS", 2**9)
    w = weight(24, 9, 5)  # a kernel of attention: 9 heads of 5
    both = lambda w: (
        row_blocks.encode_in_blocks(jm.Int(3), w, (0,), None),
        jm.Int(3).encode(w, (0,)),
    )
    assert_same(*jit(both)(w))


def test_which_codec_is_the_smallest_is_not_asked_of_a_block(monkeypatch):
    monkeypatch.setattr(row_slices, "BLOCK_WEIGHTS", 2**9)
    both = lambda w: (
        row_blocks.encode_in_blocks(jm.sparse(0.3), w, (-2,), None),
        jm.sparse(0.3).encode(w),
    )
    assert_same(*jit(both)(weight(24, 45)))


@pytest.mark.parametrize(
    "codec", [*FITS, *(pytest.param(c, marks=pytest.mark.slow) for c in FITS_SLOWLY)], ids=name_of
)
def test_a_program_that_encodes_takes_a_leaf_and_the_result_at_most(codec):
    w = jax.ShapeDtypeStruct((1024, 8192), jnp.bfloat16)  # f32 temporaries count twice
    stats = jax.eval_shape(lambda: moments(1024)) if needs_stats(codec) else None
    gram = 4 * 1024**2 * GRAM_COPIES.get(type(codec), 0)
    program = encoding._quickly_compiled.lower(codec, (-2,), w, stats).compile()
    assert program.memory_analysis().temp_size_in_bytes <= jm.nbytes(w) + gram


@pytest.mark.parametrize(
    "codec", [jm.Int(4), jm.KMeans(3), jm.Bitmask(0.5), jm.NM(2, 4)], ids=name_of
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_program_for_large_weights_of_any_dtype_takes_no_more(codec, dtype):
    w = jax.ShapeDtypeStruct((4096, 2048), dtype)
    memory = encoding._compiled.lower(codec, (-2,), w, None).compile().memory_analysis()
    assert memory.temp_size_in_bytes <= jm.nbytes(w)


@pytest.mark.parametrize("shape, axes", [((24, 45), (-2,)), ((2, 45, 24), (-1,))])
@pytest.mark.parametrize("shared", [False, True])
def test_a_large_numpy_weight_is_encoded_like_a_jax_array(shape, axes, shared, monkeypatch):
    monkeypatch.setattr(encoding, "DENSE_WEIGHTS", 2**9)
    w = aligned(shape, np.dtype("float32")) if shared else np.empty(shape, np.float32)
    w[...] = weight(*shape)
    plan = jm.Plan({"w": jm.Int(3)}, {"w": axes})
    assert_same(jm.encode({"w": w}, plan), jm.encode({"w": jnp.asarray(w)}, plan))


@pytest.mark.parametrize("codec", [jm.Float("nvfp4"), jm.Coo(0.1)], ids=name_of)
def test_codes_do_not_depend_on_where_the_memory_of_a_numpy_weight_begins(codec, monkeypatch):
    monkeypatch.setattr(row_slices, "BLOCK_WEIGHTS", 2**9)
    monkeypatch.setattr(encoding, "DENSE_WEIGHTS", 2**9)
    monkeypatch.setattr(encoding, "copied", None)  # none is made
    memory = np.zeros(3 + 48 * 90, np.float32)
    for w in (memory[3:].reshape(48, 90)[:, 1:-1], memory[3:].reshape(90, 48).T[::-1, 2:]):
        w[...] = weight(*w.shape)
        assert_same(
            jm.encode({"w": w}, {"w": codec}), jm.encode({"w": weight(48, 88)}, {"w": codec})
        )


@pytest.mark.parametrize("codec", [*map(jm.Smooth, (jm.Int(4), jm.Float("nvfp4")))], ids=name_of)
def test_smoothing_reads_a_numpy_weight_by_rows(codec, monkeypatch):
    monkeypatch.setattr(row_slices, "BLOCK_WEIGHTS", 2**9)
    w = np.zeros(3 + 48 * 88, np.float32)[3:].reshape(48, 88)
    w[...] = weight(48, 88)
    stats = moments(48)
    encode = jit(lambda w: row_blocks.encode_in_blocks(codec, w, (-2,), stats))
    assert_same(encode(strided(w)), encode(weight(48, 88)))


def test_a_layer_of_a_shared_stack_is_read_from_numpy(monkeypatch):
    w = np.zeros(3 + 4 * 24 * 40, np.float32)[3:].reshape(4, 24, 40)
    w[...] = weight(4, 24, 40)
    encode = jit(lambda w: row_blocks.encode_in_blocks(jm.Shared(2), w, (-2,), None))
    assert_same(encode(strided(w)), encode(weight(4, 24, 40)))


def test_a_leaf_that_keeps_a_numpy_weight_has_a_copy(monkeypatch):
    monkeypatch.setattr(encoding, "DENSE_WEIGHTS", 2**9)
    w = aligned((32, 64), np.dtype(jnp.bfloat16))
    w[...] = 1
    assert in_place(w).dtype == jnp.bfloat16  # bits as integers would be copied to f32 at once
    leaf = jm.encode({"w": w}, {"w": jm.Fake(jm.Int(4))})["w"]
    w[...] = 2
    assert leaf.w.dtype == jnp.bfloat16 and (leaf.w == 1).all()
