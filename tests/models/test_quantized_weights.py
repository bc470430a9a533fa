"""Quantized GGUF files as encoded leaves: the file's codes, the decoded model's logits."""

import functools

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cheap_jit import jit
from checkpoints import HF, LAYERS, random_tensors, write_gguf, write_single

import jaxmem as jm
from jaxmem.core.fold import Fold
from jaxmem.core.segmented import join_layers
from jaxmem.formats import gguf as gguf_format
from jaxmem.formats import gguf_blocks, gguf_lattices
from jaxmem.models import quantized_weights
from jaxmem.models.loading import load

HALVES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0]}
HALVES |= {"Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}
HALVES |= {"IQ4_NL": [0], "IQ4_XS": [0], "TQ2_0": [64], "MXFP4": [], "NVFP4": []}
HALVES |= {kind: [0] for kind in gguf_lattices.TYPES} | {"IQ1_M": [54]}
KINDS = list(gguf_blocks.TYPES)
IDS = np.array([[5, 17, 2, 300, 9]])


def blocks(kind, n, k, seed=0):
    """Random codes of a type under scales of a size weights have, and what they stand for."""
    number = gguf.GGMLQuantizationType[kind]
    length, size = gguf.GGML_QUANT_SIZES[number]
    data = np.random.default_rng(seed).integers(0, 256, (n, k // length, size), np.uint8)
    for at in HALVES[kind]:
        data[..., at + 1] = data[..., at + 1] & 0x83 | 0x10  # of 2^-11 to 2^-9, of either sign
    if kind == "MXFP4":
        data[..., 0] = data[..., 0] % 8 + 114
    if kind == "NVFP4":
        data[..., :4] &= 127
    return data.reshape(n, -1), gguf.dequantize(data.reshape(n, -1), number)


@pytest.mark.parametrize("kind, order", [*zip(KINDS, [(-1, -2), (-2, -1)] * len(KINDS))])
def test_blocks_are_leaves_of_the_file_s_bytes_that_decode_as_gguf_decodes(kind, order):
    data, want = blocks(kind, 24, 512)
    assert np.isfinite(want).all()
    leaf = gguf_blocks.rows(kind, data).leaf(Fold((24,), (512,), order), "float32")
    np.testing.assert_array_equal(leaf.decode(), want.T if order == (-1, -2) else want)
    assert jm.nbytes(leaf) == pytest.approx(data.nbytes, 0.005)  # a zero point, an f32 scale
    x = np.random.default_rng(1).standard_normal((3, 512)).astype(np.float32)
    w = leaf if order == (-1, -2) else leaf.transpose((1, 0))
    y = jit(jm.lift(jnp.matmul, on_decode="error"))(x, w)
    np.testing.assert_allclose(y, x @ want.T, rtol=1e-4, atol=1e-4 * np.abs(x @ want.T).max())


@pytest.mark.parametrize("kind", gguf_lattices.TYPES)
def test_points_of_a_lattice_decode_as_gguf_decodes(kind):
    data, want = blocks(kind, 24, 512)
    leaf = gguf_lattices.rows(kind, data).leaf(Fold((24,), (512,), (-2, -1)), "float32")
    np.testing.assert_array_equal(leaf.decode(), want)
    assert jm.nbytes(leaf) == data.nbytes + leaf.points.nbytes


def test_a_product_with_points_of_a_lattice_decodes_tiles_and_a_look_up_rows():
    made = [blocks("IQ3_S", 16, 512, seed) for seed in range(2)]
    rows = (gguf_lattices.rows("IQ3_S", data) for data, _ in made)
    stack = join_layers(row.leaf(Fold((16,), (512,), (-1, -2)), "float32") for row in rows)
    x = np.random.default_rng(1).standard_normal((2, 3, 512)).astype(np.float32)
    y = jit(jm.lift(jnp.matmul, on_decode="error"))(x, stack)
    taken = stack.layer(1).transpose((1, 0)).take(jnp.array([[13, 3]]))
    np.testing.assert_array_equal(taken, made[1][1][[[13, 3]]])
    want = x @ np.swapaxes([w for _, w in made], 1, 2)
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize("kinds", [("Q4_K", "Q6_K"), ("Q5_K", "Q8_0", "Q8_0")])
def test_layers_of_different_types_are_runs_of_the_file_s_own_bytes(kinds):
    made = [blocks(kind, 16, 512, seed) for seed, kind in enumerate(kinds)]
    fold = Fold((16,), (512,), (-2, -1))
    rows = (gguf_blocks.rows(kind, data) for kind, (data, _) in zip(kinds, made))
    leaf = join_layers(row.leaf(fold, "float32") for row in rows)
    np.testing.assert_array_equal(leaf.decode(), [w for _, w in made])
    assert jm.nbytes(leaf) == sum(data.nbytes for data, _ in made)
    assert leaf.ends == (1, len(kinds))


@functools.cache
def tensors():
    return random_tensors()


def logits(model, params=None):
    return jit(model.apply)(model.params if params is None else params, IDS)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_an_encoded_model_computes_what_the_decoded_one_computes(kind, tmp_path):
    path = write_gguf(tmp_path, tensors(), gguf.GGMLQuantizationType[kind])
    dense, model = load(path), load(path, encoded=True)
    assert jm.is_encoded(model.params["embed"]["embedding"])
    assert jm.is_encoded(model.params["layers"]["attn"]["k"]["kernel"])  # its rows are turned back
    for got, want in zip(leaves(jm.decode(model.params)), leaves(dense.params)):
        np.testing.assert_array_equal(got, want)
    if kind != "Q8_0":
        np.testing.assert_allclose(logits(model), logits(dense), rtol=1e-4, atol=1e-3)
    assert jm.nbytes(model.params) <= path.stat().st_size < jm.nbytes(model.params) + 4096


def leaves(tree):
    return jax.tree.leaves(tree)


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_halves_stay_halves(kind, tmp_path):
    path = write_gguf(tmp_path, tensors(), gguf.GGMLQuantizationType[kind])
    kernel = load(path, encoded=True).params["layers"]["mlp"]["up"]["kernel"]
    assert kernel.dtype == jnp.float32 and jm.nbytes(kernel) == 2 * kernel.size
    dense = load(path).params["layers"]["mlp"]["up"]["kernel"]
    np.testing.assert_array_equal(kernel.decode(), dense)


def test_f32_and_vectors_are_read_as_ever(tmp_path):
    model = load(write_gguf(tmp_path, tensors()), encoded=True)
    assert not any(map(jm.is_encoded, leaves(model.tensors)))


def test_what_holds_no_codes_is_told(tmp_path):
    with pytest.raises(ValueError, match="encoded=True takes"):
        load(write_single(tmp_path, tensors()), encoded=True)


def test_a_file_with_scales_that_are_no_numbers_is_told(tmp_path):
    path = write_gguf(tmp_path, tensors(), gguf.GGMLQuantizationType.Q8_0)
    file = gguf_format.gguf(path)
    at = file.places["blk.1.ffn_up.weight"].offset
    data = bytearray(path.read_bytes())
    data[at : at + 2] = b"\0\x7c"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"blk\.1\.ffn_up\.weight has scales that are NaN"):
        load(path, encoded=True)


def test_rows_that_are_taken_of_a_matrix_are_named_in_their_order():
    order, fold = quantized_weights.placed(lambda w: w[[2, 0]].T, 3, 4)
    assert order.tolist() == [2, 0] and fold == Fold((2,), (4,), (-1, -2))


@pytest.mark.parametrize(
    "fn", [lambda w: w[[0, 0]], lambda w: w[:, ::-1], lambda w: w.reshape(2, 6), lambda w: 2 * w]
)
def test_what_is_no_order_of_rows_is_not_taken_for_one(fn):
    assert quantized_weights.placed(fn, 3, 4) is None


def test_an_encoded_model_saves_and_comes_back(tmp_path):
    path = write_gguf(tmp_path, tensors(), gguf.GGMLQuantizationType.Q4_1)
    model = load(path, encoded=True)
    model.save(tmp_path / "ours")
    back = load(tmp_path / "ours")
    assert back.config == model.config and back.config.layers == LAYERS == HF["num_hidden_layers"]
    np.testing.assert_array_equal(logits(back), logits(model))
