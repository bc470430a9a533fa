"""GGUF tensors of every type, against the gguf package."""

import gguf
import numpy as np
import pytest
from checkpoints import random_tensors, write_gguf

from jaxmem.formats import gguf as gguf_format
from jaxmem.models import load


@pytest.fixture(scope="module")
def tensors():
    return random_tensors()


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", "BF16"])
def test_a_quantised_gguf_is_decoded_by_the_formula_of_its_type(kind, tensors, tmp_path):
    kind = gguf.GGMLQuantizationType[kind]
    model = load(write_gguf(tmp_path, tensors, kind))
    w = tensors["model.layers.1.mlp.up_proj.weight"]
    expected = gguf.dequantize(gguf.quantize(w, kind), kind).T
    np.testing.assert_array_equal(model.params["layers"]["mlp"]["up"]["kernel"][1], expected)


@pytest.mark.parametrize(
    "kind", ["Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"]
)
def test_a_tensor_of_many_chunks_is_decoded_as_gguf_decodes_it_whole(kind, tmp_path):
    kind = gguf.GGMLQuantizationType[kind]
    numbers, taken = gguf.GGML_QUANT_SIZES[kind]
    blocks = np.random.default_rng(1).integers(0, 64, (600, 1024 // numbers * taken), np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "w.gguf", "llama")
    writer.add_tensor("w", blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = gguf_format.gguf(tmp_path / "w.gguf").tensors["w"].load()
    np.testing.assert_array_equal(found, gguf.dequantize(blocks, kind))
