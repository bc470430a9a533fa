"""Encoded models in other tools' files: written exactly or told, whole or not at all, read back."""

import json

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from checkpoints import random_tensors, write_gguf, write_single
from quick import jit
from reference_models import reference

import jaxmem as jm
from jaxmem.architectures import gpt2, llama
from jaxmem.core.fold import Fold
from jaxmem.formats import gguf as gguf_format
from jaxmem.interop import gguf_encoding, to_compressed_tensors, to_gguf
from jaxmem.interop import hf_config as checkpoints_of
from jaxmem.models.loading import load
from jaxmem.models.model import Model

pytestmark = pytest.mark.usefixtures("quickly_compiled")

IDS = np.array([[5, 17, 2, 300, 9]])
MEMBERS = ["llama2", "llama3", "mistral", "qwen2", "qwen3", "gemma3"]
KERNELS = "layers/(attn|mlp)/.*/kernel"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    write_single(folder, random_tensors())
    return load(folder)


def encoded(model, rules):
    plan = jm.choose(model.tensors, rules)
    return jm.encode(model.tensors, plan, jm.uses(model.apply, model.tensors, IDS))


def assert_stands_for(tree, want):
    """Equal in every bit of every weight."""
    pairs = zip(jax.tree.leaves(jm.decode(tree)), jax.tree.leaves(jm.decode(want)), strict=True)
    for got, expected in pairs:
        np.testing.assert_array_equal(got, expected)


FORMS = {
    "Q4_0": [jm.Int(4, group=32), jm.Int(3), jm.Int(3, group=64, symmetric=False)],
    "Q5_0": [jm.Int(4, group=32, symmetric=False), jm.Int(5)],
    "Q8_0": [jm.Int(8), jm.Dynamic(jm.Int(8)), jm.Int(6, group=96), jm.Int(7, symmetric=False)],
    "Q4_1": [jm.Affine(4, group=32), jm.Affine(3)],
    "Q5_1": [jm.Affine(5, group=64)],
    "F16": [jm.Cast("float16"), jm.Cast("float8_e4m3fn")],
    "BF16": [jm.Cast("bfloat16")],
    "F32": [jm.Codebook("nf4"), jm.Int(4, group=16), jm.Int(8, symmetric=False), jm.Affine(6)],
}


@pytest.mark.parametrize("kind, codec", [(k, codec) for k, row in FORMS.items() for codec in row])
def test_a_block_type_holds_the_codes_exactly_or_is_not_taken(kind, codec):
    w = np.random.default_rng(0).standard_normal((64, 24)).astype(np.float32)
    leaf = jit(codec.encode)(w)
    assert gguf_encoding.kind(leaf, Fold((24,), (64,), (-1, -2)), half=False) == kind
    data = gguf_encoding.data(leaf, kind)
    if kind[0] == "Q":
        assert data.nbytes == gguf_encoding.nbytes(kind, (24, 64))
        data = gguf.dequantize(data, gguf.GGMLQuantizationType[kind]).T
    np.testing.assert_array_equal(data.astype(np.float32), leaf.decode())


def test_leaves_that_lie_otherwise_are_not_taken_for_blocks():
    leaf = jm.Int(4, group=32).encode(jnp.ones((64, 64)))
    for order in ((-2, -1), (-1, -2)):
        fold = Fold((64,), (64,), order)
        assert gguf_encoding.kind(leaf, fold, half=False) == (
            "Q4_0" if order == (-1, -2) else "F32"
        )
    assert gguf_encoding.kind(leaf, None, half=False) == "F32"


MIXED = {
    ".*/q/kernel": jm.Int(4, group=32),
    ".*/k/kernel": jm.Int(4, group=32, symmetric=False),
    ".*/v/kernel": jm.Int(8),
    ".*/out/kernel": jm.Affine(4, group=32),
    ".*/gate/kernel": jm.Affine(5),
    ".*/up/kernel": jm.Cast("bfloat16"),
    ".*/down/kernel": jm.Codebook("nf4"),
    "embed/embedding": jm.Int(8, group=32),
}


def test_an_encoded_model_goes_through_a_gguf_and_computes_the_same(model, tmp_path):
    enc = encoded(model, MIXED)
    written = to_gguf(tmp_path / "w.gguf", model, enc)
    assert written.decoded == ("layers/mlp/down/kernel",)
    kinds = {"Q4_0", "Q5_0", "Q8_0", "Q4_1", "Q5_1", "BF16", "F32"}
    assert set(written.types.values()) == kinds and written.types["final_norm/scale"] == "F32"
    dense, kept = load(tmp_path / "w.gguf"), load(tmp_path / "w.gguf", encoded=True)
    for found in (dense, kept):
        assert_stands_for(found.params, enc)
    assert written.nbytes == (tmp_path / "w.gguf").stat().st_size
    assert written.nbytes < jm.nbytes(kept.params) + 2048 < jm.nbytes(dense.params) / 2
    run = jit(model.apply)
    np.testing.assert_allclose(run(kept.params, IDS), run(enc, IDS), rtol=1e-4, atol=1e-3)


UNLIKE = {
    "layers/mlp/up/kernel": jm.Int(4, group=32),
    "layers[0]/mlp/up/kernel": jm.Int(8),
    "layers[0]/mlp/gate/kernel": jm.Int(8),
    "layers[1]/mlp/gate/kernel": jm.Codebook("nf4"),
    "layers/attn/q/kernel": jm.Shared(1),
    "layers/attn/v/kernel": jm.Basis(4),
    "layers/attn/out/kernel": jm.Sum((jm.Shared(1), jm.Int(4))),
    "layers/mlp_norm/scale": jm.Int(8),  # one matrix of all layers
    "layers/attn/k/kernel": jm.Dynamic(jm.Int(8)),
    "layers/mlp/down/kernel": jm.Dynamic(jm.Int(4, group=32), "e4m3"),
}


@pytest.mark.parametrize("write", [to_gguf, to_compressed_tensors])
def test_layers_that_differ_keep_their_own_codes_and_layers_that_are_tied_are_decoded(
    write, model, tmp_path
):
    enc = jm.encode(model.params, UNLIKE)
    written = write(tmp_path / "w.gguf", model, enc)
    tied = {path for path in UNLIKE if "mlp/" not in path} - {"layers/attn/k/kernel"}
    assert set(written.decoded) == tied | {"layers[1:2]/mlp/gate/kernel"}
    rounded = {path for path, codec in UNLIKE.items() if isinstance(codec, jm.Dynamic)}
    assert set(written.unrounded) == (rounded if write == to_gguf else {"layers/mlp/down/kernel"})
    assert "no longer rounded: layers/" in str(written)
    kinds = [written.types[f"layers[{run}]/mlp/up/kernel"] for run in ("0:1", "1:2")]
    assert kinds == (["Q8_0", "Q4_0"] if write == to_gguf else ["int8", "int4"])
    for keep in (False, True):
        got = load(tmp_path / "w.gguf", encoded=keep)
        assert_stands_for(got.params, enc)
    assert [got.params["layers"]["mlp"][x]["kernel"].ends for x in ("up", "gate")] == [(1, 2)] * 2


def test_an_imported_gguf_is_exported_with_the_same_bytes_of_every_tensor(tmp_path):
    path = write_gguf(tmp_path, random_tensors(), gguf.GGMLQuantizationType.Q4_1)
    to_gguf(tmp_path / "again.gguf", load(path, encoded=True))
    old, new = (gguf.GGUFReader(p) for p in (path, tmp_path / "again.gguf"))
    blocks = {t.name: (t.tensor_type, t.data.tobytes()) for t in old.tensors}
    assert {t.name: (t.tensor_type, t.data.tobytes()) for t in new.tensors} == blocks


def random(config):
    init = jax.eval_shape(llama.module(config).init, jax.random.key(0), IDS)["params"]
    make = lambda x: np.random.default_rng(x.size).standard_normal(x.shape).astype(x.dtype)
    return Model(config, jax.tree.map(make, init), None, "random")


def same(config):
    """What a config says but for what single precision and one end of a text cannot."""
    rounded = {"eps": np.float32(config.eps), "bos": None, "eos": ()}
    return config.to_dict() | rounded | ({} if config.local else {"local_theta": 0})


@pytest.mark.parametrize("name", MEMBERS)
def test_each_member_of_the_family_comes_back_from_compressed_tensors(name, tmp_path):
    config, params, _ = reference(name, family=llama)
    to_compressed_tensors(tmp_path / "w", Model(config, params, None, name))
    assert_stands_for(load(tmp_path / "w").params, params)
    assert same(load(tmp_path / "w").config) == same(config)


SIZES = dict(vocab=64, width=32, ffn=32, layers=6, heads=2, kv_heads=1, head_dim=64)
GEMMA = dict(post_norms=True, qk_norm=True, norm_offset=1.0, embed_scale=32**0.5, gelu=True)
GEMMA |= dict(local=(True,) * 5 + (False,), window=8, query_scale=0.125, tied=True, theta=1e6)
CONFIGS = {
    "llama 3": dict(theta=5e5, rope_scaling=(8.0, 1.0, 4.0, 8192.0)),
    "linear": dict(rope_scaling=(2.0,), tied=True),
    "qwen2": dict(qkv_bias=True),
    "qwen3": dict(qk_norm=True),
    "gemma3": GEMMA,
}


@pytest.mark.parametrize("name", CONFIGS)
def test_each_member_of_the_family_comes_back_from_a_gguf(name, tmp_path):
    model = random(llama.Config(**SIZES, **CONFIGS[name]))
    to_gguf(tmp_path / "w.gguf", model)
    back = load(tmp_path / "w.gguf")
    assert same(back.config) == same(model.config)
    for got, want in zip(*map(jax.tree.leaves, (back.params, model.params)), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-6 if name == "gemma3" else 0)  # 1 + gain


@pytest.mark.parametrize(
    "options",
    [dict(local=(True,) * 6, window=8), dict(rope_scaling=(8.0, 1.0, 4.0, 4096.0)),
     dict(rope_scaling=(8.0, 2.0, 4.0, 8192.0)), dict(embed_scale=2.0)],
)  # fmt: skip
def test_what_a_gguf_cannot_say_is_refused(options, tmp_path):
    with pytest.raises(ValueError, match=r"a GGUF file cannot say \w+ = "):
        to_gguf(tmp_path / "w.gguf", random(llama.Config(**SIZES, **options)))
    assert not list(tmp_path.iterdir())


def test_the_tokenizer_s_fields_of_a_gguf_are_kept_as_they_are(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    path = write_gguf(tmp_path, random_tensors())
    writer.add_array("tokenizer.ggml.tokens", ["<unk>", "a", "ü"])
    writer.add_array("tokenizer.ggml.scores", [0.5, -1.0, 0.25])
    writer.add_bool("tokenizer.ggml.add_bos_token", False)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.close):
        step()
    fields = gguf_format.encoded_fields(tmp_path / "a.gguf", "tokenizer.")
    model = load(path)
    assert len(fields) == 3 and len(gguf_format.encoded_fields(path, "tokenizer.")) == 2
    to_gguf(tmp_path / "b.gguf", model)
    kept = gguf_format.gguf(tmp_path / "b.gguf").fields
    assert kept["tokenizer.ggml.bos_token_id"] == 1 and kept["tokenizer.ggml.eos_token_id"] == 2


def test_a_tokenizer_json_goes_through_both_formats(model, tmp_path):
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, "a"))
    mine = Model(model.config, model.tensors, words, model.source)
    to_gguf(tmp_path / "w.gguf", mine)
    to_compressed_tensors(tmp_path / "w", mine)
    for path in (tmp_path / "w.gguf", tmp_path / "w"):
        assert load(path).tokenizer.encode("b").ids == [1]


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
    from jaxmem.core.lazy import Lazy
    from jaxmem.formats.compressed_tensors import read

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
    dense, _ = read({f"x.q_proj.{end}": held(a) for end, a in own.items()}, config)
    wide = lambda a: np.repeat(a, 8, 1).astype(np.float32)
    want = (codes - wide(zeros)) * wide(own["weight_scale"])
    np.testing.assert_array_equal(dense["x.q_proj.weight"].load(), want)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda q: q.update(quant_method="gptq"), "quantised by 'gptq'"),
        (lambda q: q.update(format="float-quantized"), "as 'float-quantized'"),
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


@pytest.mark.parametrize("write", [to_gguf, to_compressed_tensors])
def test_a_write_that_fails_leaves_nothing(write, model, tmp_path):
    gone = jax.tree.map(jnp.array, model.params)
    gone["final_norm"]["scale"].delete()
    with pytest.raises(RuntimeError, match="deleted"):
        write(tmp_path / "w.gguf", model, gone)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", [to_gguf, to_compressed_tensors])
def test_what_cannot_be_written_is_refused_before_any_work(write, model, tmp_path):
    other = gpt2.Config(vocab=64, width=32, layers=2, heads=4)
    with pytest.raises(ValueError, match="is a gpt2, expected a Llama"):
        write(tmp_path / "w", Model(other, {}, None, "small"))
    with pytest.raises(ValueError, match="shapes only"):
        write(tmp_path / "w", load("llama-1b"))
    with pytest.raises(ValueError, match="the params are not those of"):
        write(tmp_path / "w", model, {"w": np.ones(3)})
    with pytest.raises(ValueError, match=r"directory|exists"):
        write(tmp_path, model)
    assert list(tmp_path.iterdir()) == []


def test_half_rounds_dense_weights_and_refuses_those_beyond_it(model, tmp_path):
    written = to_gguf(tmp_path / "w.gguf", model, half=True)
    assert set(written.types.values()) == {"F16", "F32"} and written.decoded == ()
    big = jax.tree.map(np.array, model.params)
    big["layers"]["mlp"]["up"]["kernel"][1, 2, 3] = 1e5
    with pytest.raises(ValueError, match=r"layers/mlp/up/kernel.*beyond float16"):
        to_gguf(tmp_path / "x.gguf", model, big, half=True)
    assert [f.name for f in tmp_path.iterdir()] == ["w.gguf"]


def test_a_config_json_that_cannot_be_is_refused():
    sizes = dict(vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8)
    with pytest.raises(ValueError, match=r"no config\.json says embed_scale = 2\.0"):
        checkpoints_of.config_json(llama.Config(**sizes, embed_scale=2.0))
