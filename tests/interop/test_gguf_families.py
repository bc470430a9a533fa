"""Each architecture of GGUF files is written, is named as llama.cpp names it, and comes back.

experiments/quality/gguf_llama_cpp.py compares the same members with llama.cpp itself.
"""

import dataclasses
import re

import gguf
import gguf_members
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmem as jm
from jaxmem.formats import gguf as gguf_format
from jaxmem.interop import gguf_metadata, to_gguf
from jaxmem.models.loading import load

ARCHITECTURES = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}


@pytest.mark.parametrize("name", gguf_members.MEMBERS)
def test_a_member_comes_back_from_a_file_whose_names_are_llama_cpp_s(name, tmp_path):
    model = gguf_members.model(name)
    to_gguf(tmp_path / "w.gguf", model)
    file, arch = gguf_format.gguf(tmp_path / "w.gguf"), name.split()[0]
    assert file.fields["general.architecture"] == arch
    known = {gguf.TENSOR_NAMES[x].format(bid=0) for x in gguf.MODEL_TENSORS[ARCHITECTURES[arch]]}
    stems = {re.sub(r"blk\.\d+", "blk.0", tensor).rpartition(".")[0] for tensor in file.tensors}
    assert stems <= known | {"rope_freqs"}
    back = load(tmp_path / "w.gguf")
    assert gguf_metadata.metadata(back.config).architecture == arch
    for got, want in zip(*map(jax.tree.leaves, (back.params, model.params)), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-6)  # a gain is stored plus 1


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("starcoder2", dict(local=(True, True), window=5), "local = (True, True)"),
        ("qwen2moe", dict(mixture=dict(dense=(True, False, True))), "mixture = Mixture("),
        ("deepseek2 groups", dict(mixture=dict(group_score="max")), "mixture = Mixture("),
        ("command-r", dict(qk_norm=True), "qk_norm = True"),
        ("olmoe", dict(kv_heads=3), "kv_heads = 3 as olmoe, which has 6"),
        ("phi2", dict(width=32), "6 heads of 8 as phi2, whose heads have width 32 together"),
        ("llama", dict(rope_scaling=(), rope_dynamic=2.0, original_context=8), "original_context"),
        ("gpt-oss", dict(rope_factors=(1.0, 2.0, 1.5, 3.0)), "rope_factors = (1.0, 2.0, 1.5, 3.0)"),
    ],
)
def test_what_no_architecture_says_is_refused_by_name(name, changes, message):
    config = gguf_members.config(name)
    if "mixture" in changes:
        changes = {"mixture": dataclasses.replace(config.mixture, **changes["mixture"])}
    with pytest.raises(ValueError, match=re.escape(f"a GGUF file cannot say {message}")):
        gguf_metadata.metadata(dataclasses.replace(config, **changes))


SMALL = dict(vocab=32, width=32, ffn=32, heads=4, kv_heads=4, head_dim=8, layers=2)
CODES = {".*/(q|k|v|gate|down)/kernel": jm.Int(4, group=32)}


def through_a_file(name, path, **changes):
    """What is written of a member with codes, and the parameters that are read back."""
    config = dataclasses.replace(gguf_members.config(name), **SMALL, **changes)
    model = gguf_members.drawn_model(config)
    uses = jm.uses(model.apply, model.tensors, jnp.zeros((1, 4), jnp.int32))
    encoded = jm.encode(model.tensors, jm.choose(model.tensors, CODES), uses)
    written, kept = to_gguf(path, model, encoded), load(path, encoded=True).params
    for got, want in zip(*map(jax.tree.leaves, map(jm.decode, (kept, encoded)))):
        np.testing.assert_array_equal(got, want)
    return written, kept


def test_codes_of_parts_of_a_tensor_go_through_a_file_if_they_are_of_one_type(tmp_path):
    written, kept = through_a_file("phi3", tmp_path / "w.gguf", rotary_dim=4)
    assert {written.types[f"layers/attn/{x}/kernel"] for x in "qkv"} == {"Q4_0"}
    assert all(jm.is_encoded(kept["layers"]["attn"][x]["kernel"]) for x in "qkv")
    assert written.decoded == ("layers/mlp/gate/kernel",)  # in one tensor with "up", which is dense


def test_codes_of_experts_go_through_a_file(tmp_path):
    mixture = dataclasses.replace(gguf_members.config("llama experts").mixture, ffn=32)
    written, kept = through_a_file("llama experts", tmp_path / "w.gguf", mixture=mixture)
    assert written.types["layers/mlp/experts/down/kernel"] == "Q4_0" and not written.decoded
    assert jm.is_encoded(kept["layers"]["mlp"]["experts"]["down"]["kernel"])
