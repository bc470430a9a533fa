"""Quantized checkpoints as other libraries write them: their bytes, and their weights' logits.

tests/reference/make_quantized.py writes the files, and says which library computed the logits.
"""

import json
import math
import pathlib
import re

import jax
import numpy as np
import pytest
import safetensors.numpy
from cheap_jit import jit
from drawn_weights import drawn

import jaxmem as jm
from jaxmem.formats.safetensors import safetensors as opened

FOLDER = pathlib.Path(__file__).parents[1] / "reference"
NAMES = sorted(path.name for path in (FOLDER / "quantized").iterdir())
FAMILIES = ["gpt_neox", "mixtral", "mamba", "jamba", "recurrent_gemma", "deepseek_v3"]


def stored_bytes(folder):
    """Bytes of the tensors of a file, without the tables and texts of bitsandbytes.

    The group of an input takes 2 bytes in a leaf, not 4. The latents of a DeepSeek are decoded.
    """
    own = {"g_idx": 2, "kv_b_proj.weight": 4}
    itemsize = lambda name, x: next((n for end, n in own.items() if end in name), x.dtype.itemsize)
    size = lambda name, x: math.prod(x.shape) * itemsize(name, x)
    tensors = opened(folder / "model.safetensors")
    tables = {name for name in tensors if "quant_state" in name or name.endswith(".quant_map")}
    return sum(size(name, tensors[name]) for name in tensors.keys() - tables)


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_has_the_bytes_of_its_file_and_the_logits_of_its_library(name):
    model = jm.models.load(FOLDER / "quantized" / name, encoded=True)
    want = np.load(FOLDER / "quantized" / name / "logits.npz")
    assert jm.nbytes(model.params) == pytest.approx(stored_bytes(FOLDER / "quantized" / name), 0.02)
    got = jit(model.apply)(model.params, want["ids"])
    np.testing.assert_allclose(got, want["logits"], atol=1e-4 * np.abs(want["logits"]).max())


def int8(folder, name):
    """A decoder whose linears of layers have random codes of LLM.int8; other tensors are drawn."""
    file = np.load(FOLDER / "decoders" / f"{name}.npz")
    hf, tensors, rng = json.loads(str(file["config"])), {}, np.random.default_rng(0)
    for path, shape in json.loads(str(file["shapes"])).items():
        tensors[path] = drawn(path, shape)
        if len(shape) == 2 and re.search(r"\.(layers|h|blocks)\..*weight$", path):
            tensors[path] = rng.integers(-128, 128, shape, np.int8)
            scale = rng.random(shape[0]).astype(np.float32)
            tensors[f"{path.removesuffix('weight')}SCB"] = scale
    quantized = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}
    (folder / "config.json").write_text(json.dumps(hf | quantized))
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("name", FAMILIES)
def test_fused_and_stacked_linears_keep_their_codes_in_families(name, tmp_path):
    path = int8(tmp_path, name)
    model, dense = jm.models.load(path, encoded=True), jm.models.load(path)
    jax.tree.map(np.testing.assert_array_equal, jm.decode(model.params), jm.decode(dense.params))
    assert jm.nbytes(model.params) == pytest.approx(stored_bytes(path), 0.02)
