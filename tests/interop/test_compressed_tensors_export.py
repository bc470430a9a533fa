"""Encoded models as compressed-tensors: written exactly or listed as decoded, and read back."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cheap_jit import jit
from exported import IDS, assert_stands_for, encoded, folder_of, same
from reference_models import reference

import jaxmem as jm
from jaxmem.architectures import llama
from jaxmem.core.lazy import Lazy
from jaxmem.formats.compressed_tensors import read
from jaxmem.interop import hf_config, to_compressed_tensors
from jaxmem.models.loading import load
from jaxmem.models.model import Model

MEMBERS = ["llama2", "llama3", "mistral", "qwen2", "qwen3", "gemma3"]
KERNELS = "layers/(attn|mlp)/.*/kernel"


@pytest.mark.parametrize("name", MEMBERS)
def test_each_member_of_the_family_comes_back_from_compressed_tensors(name, tmp_path):
    config, params, _ = reference(name, family=llama)
    to_compressed_tensors(tmp_path / "w", Model(config, params, None, name))
    assert_stands_for(load(tmp_path / "w").params, params)
    assert same(load(tmp_path / "w").config) == same(config)


INTEGERS = {
    ".*/q/kernel": jm.Int(4, group=32),
    ".*/k/kernel": jm.Int(3, symmetric=False),
    ".*/v/kernel": jm.Int(8, group=32, symmetric=False),
    ".*/out/kernel": jm.Dynamic(jm.Int(8)),
    ".*/gate/kernel": jm.Int(5),
    ".*/down/kernel": jm.DoubleQuant(jm.Int(4, group=32), jm.Int(8)),
}


@pytest.mark.parametrize("packed", [True, False])
def test_compressed_tensors_hold_the_codes_exactly(packed, model, tmp_path):
    enc = encoded(model, INTEGERS)
    written = to_compressed_tensors(tmp_path / "w", model, enc, packed=packed)
    assert (
        written.decoded == ()
        and written.types["layers/attn/k/kernel"] == f"int{4 + 4 * (not packed)}"
    )
    got = load(tmp_path / "w", encoded=True)
    assert_stands_for(got.params, enc)
    assert_stands_for(load(tmp_path / "w").params, enc)
    kinds = {name: type(x["kernel"]) for name, x in got.params["layers"]["attn"].items()}
    assert kinds == {name: type(x["kernel"]) for name, x in enc["layers"]["attn"].items()}
    assert got.config == model.config


FAMILIES = {  # a family with q, k and v in one tensor, one of experts, an encoder
    "decoders/phi3": {".*/(q|k|v|gate|up)/kernel": jm.Int(3), ".*/down/kernel": jm.Int(8)},
    "decoders/qwen3_moe": {".*experts/.*/kernel": jm.Int(4, group=4), ".*/q/kernel": jm.Int(4)},
    "encoders/bert_sequence": {"layers/.*/kernel|head/dense/kernel": jm.Int(4, symmetric=False)},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_s_own_tensors_hold_the_codes_exactly(name, tmp_path):
    folder_of(name, tmp_path)
    model = load(tmp_path)
    enc = jm.encode(model.params, jm.choose(model.params, FAMILIES[name] | {".*": jm.Keep()}))
    written = to_compressed_tensors(tmp_path / "w", model, enc)
    again = load(tmp_path / "w", encoded=True)
    assert written.decoded == () and again.config == model.config
    assert_stands_for(again.params, enc)
    ignored = json.loads((tmp_path / "w/config.json").read_text())["quantization_config"]["ignore"]
    assert r"re:.*pooler\.dense$" not in ignored
    kept = [path for path, kind in written.types.items() if kind.startswith("int")]
    leaves = lambda tree: dict(zip(jm.paths(tree), jax.tree.leaves(tree, is_leaf=jm.is_encoded)))
    assert kept and all(jm.is_encoded(leaves(again.params)[path]) for path in kept)


@pytest.mark.parametrize(
    ("name", "path", "message"),
    [
        ("gpt2", "layers/mlp/up/kernel", "mlp/up/kernel has codes, and its module .* is a Conv1D"),
        ("decoders/gpt_oss", ".*experts/gate/kernel", "experts are one tensor in transformers"),
        (
            "encoders/nomic_bert_masked",
            ".*/mlp/up/kernel",
            "loads the tensors of a nomic_bert into",
        ),
    ],
)
def test_what_is_no_linear_layer_in_transformers_is_refused(name, path, message, tmp_path):
    folder_of(name, tmp_path)
    model = load(tmp_path)
    enc = jm.encode(model.params, jm.choose(model.params, {path: jm.Int(4), ".*": jm.Keep()}))
    with pytest.raises(ValueError, match=message):
        to_compressed_tensors(tmp_path / "w", model, enc)


def test_weights_and_inputs_of_8_bits_compute_the_same(model, tmp_path):
    enc = encoded(model, {KERNELS: jm.Dynamic(jm.Int(8))})
    to_compressed_tensors(tmp_path / "w", model, enc, packed=False)
    got, run = load(tmp_path / "w", encoded=True), jit(model.apply)
    np.testing.assert_array_equal(run(got.params, IDS), run(enc, IDS))


def test_a_config_says_which_layers_are_how(model, tmp_path):
    rules = {".*/q/kernel": jm.Int(8), ".*mlp/.*kernel": jm.Int(4, group=32)}
    enc = encoded(model, rules)
    to_compressed_tensors(tmp_path / "w", model, enc)
    said = json.loads((tmp_path / "w" / "config.json").read_text())["quantization_config"]
    groups = {g["weights"]["num_bits"]: g for g in said["config_groups"].values()}
    assert groups[8]["targets"] == [r"re:.*self_attn\.q_proj$"]
    assert groups[4]["weights"]["group_size"] == 32 and len(groups[4]["targets"]) == 3
    assert {"lm_head", "model.layers.1.self_attn.o_proj"} < set(said["ignore"])
    assert_stands_for(load(tmp_path / "w", encoded=True).params, enc)


def test_what_has_no_integers_is_decoded_and_told(model, tmp_path):
    enc = encoded(model, {KERNELS: jm.Codebook("nf4"), "embed/embedding": jm.Int(8)})
    written = to_compressed_tensors(tmp_path / "w", model, enc)
    assert len(written.decoded) == 8 and "decoded, for want of an exact form" in str(written)
    assert_stands_for(load(tmp_path / "w").params, enc)


def test_another_tool_s_words_are_read(tmp_path):
    """What compressed-tensors' own `pack_to_int32` makes: code + 8, first in the low bits."""
    held = lambda a: Lazy(a.shape, a.dtype, lambda _: a)
    codes = np.random.default_rng(0).integers(-8, 8, (16, 24))
    word = lambda c: sum((c[:, i::8] + 8 & 15).astype(np.int64) << 4 * i for i in range(8))
    scale = np.random.default_rng(1).random((16, 3)).astype(np.float32)
    zeros = np.random.default_rng(2).integers(-8, 8, (16, 3))
    own = {"weight_packed": word(codes).astype(np.uint32).view(np.int32)}
    own |= {"weight_scale": scale.astype(jnp.bfloat16), "weight_shape": np.array([16, 24])}
    own["weight_zero_point"] = word(zeros.T).T.astype(np.uint32).view(np.int32)
    weights = {"num_bits": 4, "type": "int", "symmetric": False}
    config = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    config["config_groups"] = {"a": {"targets": ["re:.*proj$"], "weights": weights}}
    _, matrices = read({f"x.q_proj.{end}": held(a) for end, a in own.items()}, config)
    wide = lambda a: np.repeat(a, 8, 1).astype(np.float32)
    want = (codes - wide(zeros)) * wide(own["weight_scale"])
    np.testing.assert_array_equal(matrices["x.q_proj"].tensor().load(), want)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda q: q.update(quant_method="quip"), "quantised by 'quip'"),
        (lambda q: q.update(format="marlin-24"), "as 'marlin-24'"),
        (lambda q: q["config_groups"]["group_0"].update(targets=["re:other"]), "no group of its"),
        (lambda q: q["config_groups"]["group_0"].update(targets=["re:("]), "regular expression"),
        (lambda q: q["config_groups"]["group_0"]["weights"].update(num_bits=3), "of 3 bits"),
        (lambda q: q["config_groups"]["group_0"]["weights"].update(num_bits=8), "other codes"),
        (lambda q: q.update(config_groups=None), "config.json|w: "),
    ],
)
def test_a_config_that_says_another_thing_is_one_line(change, message, model, tmp_path):
    to_compressed_tensors(tmp_path / "w", model, encoded(model, {KERNELS: jm.Int(4)}))
    said = json.loads((tmp_path / "w" / "config.json").read_text())
    change(said["quantization_config"])
    (tmp_path / "w" / "config.json").write_text(json.dumps(said))
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "w")


def test_a_config_json_that_cannot_be_is_refused():
    sizes = dict(vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8)
    with pytest.raises(ValueError, match=r"no config\.json says embed_scale = 2\.0"):
        hf_config.config_json(llama.Config(**sizes, embed_scale=2.0))
