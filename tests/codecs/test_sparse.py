"""Sparse codecs: kept weights are exact, bytes are as computed, wrong arguments are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cheap_jit import jit
from jax.experimental.sparse import BCOO, BCSR

import jaxmem as jm
from jaxmem.codecs.sparse import compressed, highest
from jaxmem.io.checkpoint import load, save

W = jax.random.normal(jax.random.key(0), (64, 48))
FORMS = [jm.Bitmask(0.5), jm.NM(2, 4), jm.NM(1, 4), jm.Csr(0.1), jm.Coo(0.02)]


@pytest.mark.parametrize("codec", FORMS, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_kept_is_exact_and_what_is_dropped_is_zero(codec, dtype):
    w = W.astype(dtype)
    got = jit(lambda w: codec.encode(w).decode())(w)
    mask = codec.mask(jnp.abs(w.T.astype(jnp.float32))).T
    np.testing.assert_array_equal(got, jnp.where(mask, w, 0))


@pytest.mark.parametrize("n, m", [(2, 4), (3, 4), (4, 8), (1, 16), (3, 12)])
def test_every_pattern_has_a_number_and_comes_back_from_it(n, m):
    masks = (np.arange(2**m)[:, None] >> np.arange(m) & 1).astype(bool)
    w = masks[masks.sum(1) == n] * np.arange(1.0, m + 1.0, dtype="f4")
    codec = jm.NM(n, m)
    np.testing.assert_array_equal(jit(lambda w: codec.encode(w, (-1,)).decode())(w), w)


# Bits a weight at 50 %, then at 2:4: masks, values, and a scale of 16 bits for each row of 32.
BITS = {
    "float32": (1 + 16, 0.75 + 16),
    "bfloat16": (1 + 8, 0.75 + 8),
    "int8": (1 + 4 + 16 / 64, 0.75 + 4 + 16 / 64),
    "int4": (1 + 2 + 16 / 64, 0.75 + 2 + 16 / 64),
}


@pytest.mark.parametrize("kind", BITS)
def test_bytes_are_what_the_formula_says_and_what_the_file_holds(kind, tmp_path):
    values = (jm.Int(int(kind[3:])),) if kind.startswith("int") else ()
    w = W if values else W.astype(kind)
    for pattern, bits in zip((jm.Bitmask(0.5), jm.NM(2, 4)), BITS[kind]):
        leaf = jit(jm.Chain((pattern, *values)).encode)(w)
        assert jm.nbytes(leaf) == bits * w.size / 8
        save(tmp_path / "w.jm", leaf)
        size = (tmp_path / "w.jm").stat().st_size
        assert jm.nbytes(leaf) <= size <= jm.nbytes(leaf) + 1024 * (1 + len(jax.tree.leaves(leaf)))
        np.testing.assert_array_equal(jm.decode(load(tmp_path / "w.jm")), jm.decode(leaf))


def test_a_chain_encodes_only_what_is_kept():
    leaf = jm.Chain((jm.NM(2, 4), jm.Int(8))).encode(W)
    plain = jm.decode(jm.NM(2, 4).encode(W))
    assert ((jm.decode(leaf) == 0) | (plain != 0)).all()
    assert jnp.abs(jm.decode(leaf) - plain).max() <= jnp.abs(W).max() / 127 / 2 * 1.001


def test_outliers_stand_beside_quantized_bulk():
    w = W.at[3, 5].set(40.0).at[9, 7].set(-60.0)
    codec = jm.Sum((jm.Coo(2 / W.size), jm.Int(4, group=16)))
    error = lambda codec: float(jnp.abs(jm.decode(codec.encode(w)) - w).max())
    assert error(codec) < error(jm.Int(4, group=16)) / 8
    assert jm.nbytes(codec.encode(w)) == jm.nbytes(jm.Int(4, group=16).encode(w)) + 2 * 6


def test_block_products_read_the_blocks_and_no_others():
    leaf = jm.Blocks(0.25, block=(16, 16)).encode(W)
    x = jax.random.normal(jax.random.key(1), (3, 64))
    np.testing.assert_allclose(
        jit(jm.lift(jnp.matmul, on_decode="error"))(x, leaf), x @ jm.decode(leaf), atol=1e-5
    )
    blocks = jm.decode(leaf).T.reshape(3, 16, 4, 16)
    assert ((blocks != 0).any((1, 3)).sum(1) == 1).all()
    flops = jit(jm.lift(jnp.matmul)).lower(x, leaf).compile().cost_analysis()["flops"]
    assert flops < 2 * 3 * W.size / 2


def test_the_smallest_form_is_chosen_by_bytes():
    w = jax.ShapeDtypeStruct((1024, 512), jnp.float32)
    size = lambda codec: jm.nbytes(jax.eval_shape(codec.encode, w))
    for density in (0.5, 0.2, 0.05, 0.001):
        forms = [f(density) for f in (jm.Bitmask, jm.Csr, jm.Coo)]
        assert size(jm.Smallest(tuple(forms))) == min(map(size, forms))


def test_a_bcoo_matrix_goes_both_ways():
    leaf = jm.Coo(0.02).encode(W)
    sparse = jm.to_bcoo(leaf)
    np.testing.assert_array_equal(sparse.todense(), jm.decode(leaf).T)
    again = jm.from_bcoo(sparse)
    assert (again.shape, jm.nbytes(again)) == ((48, 64), jm.nbytes(leaf))
    np.testing.assert_array_equal(jm.decode(again), jm.decode(leaf).T)
    turned = jm.from_bcoo(BCOO.fromdense(jm.decode(leaf)), (-2,))
    np.testing.assert_array_equal(jm.decode(turned), jm.decode(leaf))
    with pytest.raises(ValueError, match="takes a matrix"):
        jm.to_bcoo(jm.Coo(0.02).encode(jnp.stack([W, W])))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: jm.Bitmask(0), "density above 0 and below 1, got 0"),
        (lambda: jm.Bitmask(1.0), "density above 0 and below 1, got 1.0"),
        (lambda: jm.Csr(-0.5), "got -0.5"),
        (lambda: jm.NM(4, 4), "0 < n < m, got 4:4"),
        (lambda: jm.NM(0, 4), "0 < n < m, got 0:4"),
        (lambda: jm.NM(8, 16), "12870 patterns, expected at most 256"),
        (lambda: jm.Blocks(0.5, block=(0, 8)), r"\(outputs, inputs\), got \(0, 8\)"),
        (lambda: jm.NM(2, 5).encode(W), "multiple of 5, got 64"),
        (lambda: jm.Bitmask(0.001).encode(W), "keeps 0 of 64 weights of each row, expected some"),
        (lambda: jm.Bitmask(0.999).encode(W), "keeps 64 of 64"),
        (lambda: jm.Blocks(0.3, block=(8, 64)).encode(W), "keeps 0 of 1 blocks of 64 inputs"),
        (lambda: jm.Inputs(0.5, size=7).encode(W), "runs of 7 inputs do not divide 64"),
        (lambda: jm.Outputs(0.01).encode(W), "keeps 0 of 48 runs of 1 outputs"),
        (lambda: jm.Smallest(()), "at least one codec"),
    ],
)
def test_wrong_arguments_are_refused_with_their_value(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_budget_chooses_among_sparse_and_dense_codecs():
    params = {name: jax.random.normal(jax.random.key(i), (64, 64)) for i, name in enumerate("ab")}
    candidates = [jm.Int(4, group=64), jm.Chain((jm.NM(2, 4), jm.Int(8))), jm.Bitmask(0.5)]
    plan = jm.budget(params, nbytes=6_500, candidates=candidates, sensitivity={"a": 1.0, "b": 50.0})
    assert plan == jm.Plan.from_json(plan.to_json())
    assert jm.nbytes(jm.encode(params, plan)) <= 6_500


@pytest.mark.parametrize("size", [4, 16, 17, 200])
@pytest.mark.parametrize("share", [0, 0.25, 0.5, 1])
def test_a_selection_keeps_what_a_stable_sort_puts_first(size, share):
    scores = np.random.default_rng(size).integers(-3, 4, (2, 5, size)).astype(np.float32)
    scores[0, 0], scores[0, 1], scores[0, 2, ::3] = np.inf, -np.inf, np.nan
    scores[1] *= np.where(scores[1] == 0, -1, 1)  # -0 ties with 0
    count = int(share * size)
    order = np.argsort(-scores, -1, kind="stable")  # NaN last
    wanted = np.argsort(order, -1, kind="stable") < count
    got = jax.jit(highest)(jnp.asarray(scores), jnp.int32(count))
    np.testing.assert_array_equal(got, wanted)
    values, places = compressed(jnp.asarray(scores), got, count)
    np.testing.assert_array_equal(places, np.nonzero(wanted)[2].reshape(2, 5, count))
    np.testing.assert_array_equal(values, np.take_along_axis(scores, np.asarray(places), -1))


@pytest.mark.parametrize("form, axes", [(lambda m: m, (-2,)), (BCSR.from_bcoo, (-1,))])
def test_values_that_a_bcoo_matrix_has_at_one_place_add_up(form, axes):
    places = jnp.array([[0, 1], [0, 1], [0, 1], [3, 2]])
    matrix = form(BCOO((jnp.array([1.0, 2.0, 4.0, 8.0]), places), shape=(4, 3)))
    leaf = jm.from_bcoo(matrix, axes)
    np.testing.assert_array_equal(jm.decode(leaf), matrix.todense())
    assert jm.nbytes(leaf) == 2 * (4 + 1 + 1)


def test_the_padding_of_a_bcoo_matrix_stands_for_nothing():
    dense = jnp.eye(256)  # an index of 256 would be 0 in a byte
    matrix = BCOO.fromdense(dense, nse=260)
    np.testing.assert_array_equal(jm.decode(jm.from_bcoo(matrix)), dense)
    np.testing.assert_array_equal(jit(lambda m: jm.from_bcoo(m).decode())(matrix), dense)


def test_from_bcoo_says_which_matrices_it_takes():
    with pytest.raises(TypeError, match="takes a BCOO or BCSR matrix, got ndarray"):
        jm.from_bcoo(np.eye(3))
