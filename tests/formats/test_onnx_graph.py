"""An encoder's ONNX file, as PyTorch's exporter names its tensors, loads as its safetensors do."""

import jax
import numpy as np
import onnx
import pytest
from exported import folder_of
from onnx import helper, numpy_helper
from safetensors.numpy import load_file

from jaxmem.models.loading import load

PREFIX = "model.0.auto_model."


def written(path, tensors, ops=("MatMul", "Add")):
    """A graph that multiplies with each linear layer, and holds the other tensors by name."""
    product, added = ops
    initializers, nodes = [], []
    for i, (name, w) in enumerate(tensors.items()):
        stem, _, end = name.rpartition(".")
        has_bias = f"{stem}.bias" in tensors
        stored, held = f"{PREFIX}{name}", w
        if w.ndim == 2 and has_bias and end == "weight":
            stored, held = f"onnx::MatMul_{i}", w.T
            product_name = f"/{stem.replace('.', '/')}/MatMul"
            nodes.append(helper.make_node(product, [f"x{i}", stored], [f"y{i}"], product_name))
            nodes.append(helper.make_node(added, [f"{PREFIX}{stem}.bias", f"y{i}"], [f"z{i}"]))
        initializers.append(numpy_helper.from_array(np.ascontiguousarray(held), stored))
    initializers.append(numpy_helper.from_array(np.arange(3), "onnx::Gather_9"))
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [], [], initializers)), path)
    return path


def test_an_encoder_loads_from_onnx_as_from_safetensors(tmp_path):
    folder_of("bert", tmp_path)
    expected = load(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "onnx").mkdir()
    got = load(written(tmp_path / "onnx/model.onnx", tensors))
    assert got.config == expected.config
    jax.tree.map(np.testing.assert_array_equal, got.params, expected.params)
    del tensors["encoder.layer.1.output.dense.weight"]
    with pytest.raises(ValueError, match=r"has no tensor encoder\.layer\.1\.output\.dense\.weight"):
        load(written(tmp_path / "model.onnx", tensors))


def test_an_onnx_file_that_is_not_read_is_refused_by_name(tmp_path):
    tensors = folder_of("bert", tmp_path)
    path = written(tmp_path / "model.onnx", tensors, ops=("MatMulInteger", "Add"))
    with pytest.raises(ValueError, match=r"multiplies codes \(MatMulInteger\)"):
        load(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"model\.onnx is no whole ONNX file"):
        load(path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match="vocab_size is missing"):
        load(path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"has no config\.json beside it"):
        load(path)
