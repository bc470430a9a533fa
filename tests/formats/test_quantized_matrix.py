"""Rows of quantized matrices, as fused linears take them, and scales of each shape."""

import json
import pathlib

import ml_dtypes
import numpy as np
import pytest

from jaxmem.core.fold import Fold
from jaxmem.core.lazy import Lazy
from jaxmem.formats.compressed_tensors import read as compressed_tensors
from jaxmem.formats.quantized_checkpoint import method, read
from jaxmem.formats.safetensors import safetensors

FOLDER = pathlib.Path(__file__).parents[1] / "reference" / "quantized"
CODES = np.random.default_rng(0).integers(0, 0x7F, (6, 10), np.uint8).view(ml_dtypes.float8_e4m3fn)


def held(**tensors):
    lazy = lambda a: Lazy(a.shape, a.dtype, lambda _=None: a)
    return {f"a.{name}": lazy(a) for name, a in tensors.items()}


RUN, CHOICE = np.arange(8, 24), np.array([32, 3, 1])


@pytest.mark.parametrize(
    "name, rows",
    [
        ("bitsandbytes_nf4", RUN),
        ("bitsandbytes_nf4", CHOICE),
        ("fp8_blocks", RUN),
    ],
)
def test_rows_of_a_matrix_are_those_of_the_whole(name, rows):
    said = json.loads((FOLDER / name / "config.json").read_text())
    tensors = safetensors(FOLDER / name / "model.safetensors")
    _, coded = read(tensors, *method(said), False)
    matrix = coded["model.layers.0.self_attn.q_proj.weight"]
    leaf = matrix.leaf(rows, Fold((len(rows),), (64,), (-2, -1)), "float32")
    np.testing.assert_array_equal(leaf.decode(), matrix.tensor().load()[rows])


@pytest.mark.parametrize(
    "scale, block, wide",
    [
        (np.full((), 0.3), None, lambda s: s),
        (np.full(1, 0.3), None, lambda s: s),
        (np.arange(1.0, 7.0), None, lambda s: s[:, None]),
        (np.arange(1.0, 7.0)[:, None], None, lambda s: s),
        (np.arange(1.0, 7.0).reshape(2, 3), [4, 4],
         lambda s: s.repeat(4, 0)[:6].repeat(4, 1)[:, :10]),
    ],
)  # fmt: skip
def test_scales_of_fp8_serve_a_matrix_rows_or_blocks(scale, block, wide):
    scale = scale.astype(np.float32)
    tensors = held(weight=CODES, weight_scale_inv=scale, activation_scale=scale)
    dense, _ = read(tensors, "fp8", {"weight_block_size": block}, False)
    assert list(dense) == ["a.weight"]
    want = CODES.astype(np.float32) * wide(scale)
    np.testing.assert_array_equal(dense["a.weight"].load(), want)


def test_a_number_that_is_none_is_refused():
    nan = np.array([[np.nan]], ml_dtypes.float8_e4m3fn)
    dense, _ = read(held(weight=nan, weight_scale=np.ones(1, np.float32)), "fp8", {}, False)
    with pytest.raises(ValueError, match="a holds NaN"):
        dense["a.weight"].load()


@pytest.mark.parametrize("g_idx", [[1, 0, 1, 0], [-1, -1, -1, -1]])
def test_compressed_tensors_has_groups_in_the_order_of_activations(g_idx):
    codes, scale = np.arange(-4, 4, dtype=np.int8).reshape(2, 4), np.float32([[1, 2], [3, 4]])
    weights = {"num_bits": 8, "strategy": "group", "group_size": 2, "actorder": "group"}
    config = {"quant_method": "compressed-tensors", "format": "int-quantized"}
    config["config_groups"] = {"group_0": {"targets": ["Linear"], "weights": weights}}
    tensors = held(weight=codes, weight_scale=scale, weight_g_idx=np.int32(g_idx))
    _, matrices = compressed_tensors(tensors, config)
    groups = [0, 0, 1, 1] if g_idx[0] < 0 else g_idx
    np.testing.assert_array_equal(matrices["a"].tensor().load(), codes * scale[:, groups])
