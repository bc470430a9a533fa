"""Quantized checkpoints as other libraries write them: their bytes, and their weights' logits.

tests/reference/make_quantized.py writes the files, and says which library computed the logits.
"""

import functools
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


def mlx_stacks(name, rng):
    """config.json, tensors and their numbers by transformers' names: MLX stacks the experts."""
    file = np.load(FOLDER / "decoders" / f"{name}.npz")
    shapes = json.loads(str(file["shapes"]))
    dense, experts, tensors = {}, {}, {}
    for path, shape in shapes.items():
        dense[path] = drawn(path, shape)
        block, is_expert, rest = path.partition(".experts.")
        if is_expert:
            number, part = rest.removesuffix(".weight").split(".")
            part = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}.get(part, part)
            experts.setdefault(f"{block}.switch_mlp.{part}", {})[int(number)] = path
        else:
            tensors[path] = dense[path]
    for stem, by_number in experts.items():
        n, k = shapes[by_number[0]]
        words = rng.integers(0, 2**32, (len(by_number), n, k // 4), np.uint32)
        scales, biases = rng.random((2, len(by_number), n, k // 4)).astype(np.float16)
        tensors |= {f"{stem}.weight": words, f"{stem}.scales": scales, f"{stem}.biases": biases}
        codes = words[..., None] >> np.arange(0, 32, 8, dtype=np.uint32) & 255
        wide = [a.astype(np.float32)[..., None] for a in (scales, biases)]
        numbers = (codes * wide[0] + wide[1]).reshape(-1, n, k)
        dense |= {path: numbers[i] for i, path in by_number.items()}
    return json.loads(str(file["config"])), tensors, dense


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_experts_in_the_stacks_of_mlx_keep_their_codes(name, tmp_path):
    hf, tensors, dense = mlx_stacks(name, np.random.default_rng(0))
    for folder, arrays, more in (
        ("mlx", tensors, {"quantization": {"bits": 8, "group_size": 4}}),
        ("dense", dense, {}),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text(json.dumps(hf | more))
        safetensors.numpy.save_file(arrays, tmp_path / folder / "model.safetensors")
    model = jm.models.load(tmp_path / "mlx", encoded=True)
    want = jm.models.load(tmp_path / "dense").params
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6)
    jax.tree.map(close, jm.decode(model.params), want)
    assert jm.nbytes(model.params) == pytest.approx(stored_bytes(tmp_path / "mlx"), 0.02)
