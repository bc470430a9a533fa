"""GGUF names, orders and fields, against what the converter does."""

import gguf
import numpy as np
import pytest
from checkpoints import random_tensors, write_gguf

from jaxmem.core.lazy import Lazy
from jaxmem.formats import gguf as gguf_format
from jaxmem.formats import gguf_llama


@pytest.fixture(scope="module")
def tensors():
    return random_tensors()


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3", "gemma3", "gpt2", "bert"])
def test_gguf_names_are_those_of_the_reference(arch):
    number = {name: n for n, name in gguf.MODEL_ARCH_NAMES.items()}[arch]
    reference = gguf.get_tensor_name_map(number, 2)
    for theirs, ours in gguf_llama.NAMES[arch].items():
        candidates = {reference.get_name(p + ours.format(1)) for p in ("", "transformer.", "bert.")}
        only_qwen3 = theirs in ("attn_q_norm", "attn_k_norm") and arch in ("llama", "qwen2")
        assert candidates & {theirs, f"blk.1.{theirs}"} or only_qwen3, theirs


def test_gemma_s_gains_are_stored_with_one_added_and_gpt2_s_kernels_turned():
    gain, kernel = np.full(4, 3.0, np.float32), np.arange(12, dtype=np.float32).reshape(6, 2)
    for arch, name, stored, expected in [
        ("gemma3", "blk.0.post_ffw_norm.weight", gain, gain - 1),
        ("gpt2", "blk.0.attn_qkv.weight", kernel, kernel.T),
        ("gpt2", "token_embd.weight", kernel, kernel),
    ]:
        held = Lazy(stored.shape, stored.dtype, lambda _, w=stored: w)
        file = gguf_format.Gguf(None, {"general.architecture": arch}, {name: held})
        ((_, found),) = gguf_llama.tensors(file).items()
        assert found.shape == expected.shape
        np.testing.assert_array_equal(found.load(), expected)


def test_llama_3_s_rope_factors_in_a_gguf_become_its_scaling(tensors, tmp_path):
    file = gguf_format.gguf(write_gguf(tmp_path, tensors))
    held = Lazy((4,), np.dtype("float32"), lambda _: np.array([1, 1, 3.5, 8], np.float32))
    found = gguf_format.Gguf(file.path, file.fields, file.tensors | {"rope_freqs.weight": held})
    assert gguf_llama.config(found)["rope_scaling"]["factor"] == 8.0
