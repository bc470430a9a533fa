"""Encoded models as GGUF files: written exactly or listed as decoded, and read back."""

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cheap_jit import jit
from checkpoints import random_tensors, write_gguf
from exported import IDS, assert_stands_for, encoded, same
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import jaxmem as jm
from jaxmem.architectures import llama
from jaxmem.core.fold import Fold
from jaxmem.formats import gguf as gguf_format
from jaxmem.formats import tokenizers
from jaxmem.interop import gguf_block_bytes, to_gguf
from jaxmem.models.loading import load
from jaxmem.models.model import Model

FORMS = {
    "Q4_0": [jm.Int(4, group=32), jm.Int(3), jm.Int(3, group=64, symmetric=False)],
    "Q5_0": [jm.Int(4, group=32, symmetric=False), jm.Int(5)],
    "Q8_0": [jm.Int(8), jm.Dynamic(jm.Int(8)), jm.Int(6, group=96), jm.Int(7, symmetric=False)],
    "Q4_1": [jm.Affine(4, group=32), jm.Affine(3)],
    "Q5_1": [jm.Affine(5, group=64)],
    **{f"Q{bits}_K": [jm.KQuant(bits)] for bits in (2, 3, 4, 5, 6)},
    "F16": [jm.Cast("float16"), jm.Cast("float8_e4m3fn")],
    "BF16": [jm.Cast("bfloat16")],
    "F32": [jm.Codebook("nf4"), jm.Int(4, group=16), jm.Int(8, symmetric=False), jm.Affine(6)],
}


@pytest.mark.parametrize("kind, codec", [(k, codec) for k, row in FORMS.items() for codec in row])
def test_a_block_type_holds_the_codes_exactly_or_is_not_taken(kind, codec):
    w = np.random.default_rng(0).standard_normal((768, 8)).astype(np.float32)
    leaf = jit(codec.encode)(w)
    assert gguf_block_bytes.kind(leaf, Fold((8,), (768,), (-1, -2)), half=False) == kind
    data = gguf_block_bytes.data(leaf, kind)
    if kind[0] == "Q":
        assert data.nbytes == gguf_block_bytes.nbytes(kind, (8, 768))
        data = gguf.dequantize(data, gguf.GGMLQuantizationType[kind]).T
    np.testing.assert_array_equal(data.astype(np.float32), leaf.decode())


@pytest.mark.parametrize(
    "codec", [codec for k, row in FORMS.items() if k[0] == "Q" for codec in row[:1]]
)
def test_weights_near_the_end_of_float16_are_no_zeros(codec):
    w = np.random.default_rng(0).standard_normal((768, 8)).astype(np.float32) * np.float32(1e-6)
    plain, tiny = (jit(lambda w: codec.encode(w).decode() - w)(x) for x in (w * 1e6, w))
    norm = np.linalg.norm
    assert norm(tiny) / norm(w) < norm(plain) / norm(w * 1e6) + 0.08  # all lost: 1


def test_leaves_that_lie_otherwise_are_not_taken_for_blocks():
    leaf = jm.Int(4, group=32).encode(jnp.ones((64, 64)))
    for order in ((-2, -1), (-1, -2)):
        fold = Fold((64,), (64,), order)
        assert gguf_block_bytes.kind(leaf, fold, half=False) == (
            "Q4_0" if order == (-1, -2) else "F32"
        )
    assert gguf_block_bytes.kind(leaf, None, half=False) == "F32"


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


SIZES = dict(vocab=64, width=32, ffn=32, layers=6, heads=2, kv_heads=1, head_dim=64)
GEMMA = dict(post_norms=True, qk_norm=True, norm_offset=1.0, embed_scale=32**0.5, gelu=True)
GEMMA |= dict(local=(True,) * 5 + (False,), window=8, query_scale=0.125, tied=True, theta=1e6)
CONFIGS = {
    "llama 3": dict(theta=5e5, rope_scaling=(8.0, 1.0, 4.0, 8192.0)),
    "linear": dict(rope_scaling=(2.0,), tied=True),
    "factors": dict(rope_factors=tuple(np.linspace(1, 8, 32, dtype=np.float32).tolist())),
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
    [dict(local=(True,) * 6, window=8), dict(embed_scale=2.0, qk_norm=True)],
)
def test_what_a_gguf_cannot_say_is_refused(options, tmp_path):
    with pytest.raises(ValueError, match=r"a GGUF file cannot say \w+ = "):
        to_gguf(tmp_path / "w.gguf", random(llama.Config(**SIZES, **options)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("scaling", [(8.0, 1.0, 4.0, 4096.0), (8.0, 2.0, 4.0, 8192.0)])
def test_a_scaling_that_has_no_name_is_written_as_its_factors(scaling, tmp_path):
    model = random(llama.Config(**SIZES | dict(layers=1), rope_scaling=scaling))
    to_gguf(tmp_path / "w.gguf", model)
    back, config = load(tmp_path / "w.gguf").config, model.config
    assert len(back.rope_factors) == 32 and back.rope_scaling == ()
    frequencies = [llama.per_layer(c)["frequencies"] for c in (back, config)]
    np.testing.assert_allclose(*frequencies, rtol=1e-6)


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


def test_half_rounds_dense_weights_and_refuses_those_beyond_it(model, tmp_path):
    written = to_gguf(tmp_path / "w.gguf", model, half=True)
    assert set(written.types.values()) == {"F16", "F32"} and written.decoded == ()
    big = jax.tree.map(np.array, model.params)
    big["layers"]["mlp"]["up"]["kernel"][1, 2, 3] = 1e5
    with pytest.raises(ValueError, match=r"layers/mlp/up/kernel.*beyond float16"):
        to_gguf(tmp_path / "x.gguf", model, big, half=True)
    assert [f.name for f in tmp_path.iterdir()] == ["w.gguf"]


def test_a_saved_model_is_exported_with_the_vocabulary_of_its_tokenizer(tmp_path):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = {token: i for i, token in enumerate([*alphabet, "he"])}
    tokenizer = Tokenizer(models.BPE(tokens, [("h", "e")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>", "<end>"])
    model = random(llama.Config(**SIZES | dict(vocab=260, layers=1), bos=257, eos=(258, 259)))
    said = {"tokenizer_config.json": {"pad_token": "<s>", "unk_token": {"content": "<end>"}}}
    options = {"chat_template": "{{ messages }}", "hf_files": said}
    Model(model.config, model.tensors, tokenizer, "random", **options).save(tmp_path / "saved")
    to_gguf(tmp_path / "w.gguf", load(tmp_path / "saved"))
    fields = gguf_format.gguf(tmp_path / "w.gguf").fields
    assert fields["tokenizer.ggml.model"] == "gpt2" and fields["tokenizer.ggml.pre"] == "gpt-2"
    assert fields["tokenizer.ggml.tokens"][256:] == ["he", "<s>", "</s>", "<end>"]
    assert fields["tokenizer.ggml.token_type"][256:] == [1, 3, 3, 3]
    assert fields["tokenizer.ggml.merges"] == ["h e"]
    assert fields["tokenizer.chat_template"] == "{{ messages }}"
    assert fields["tokenizer.ggml.padding_token_id"] == 257
    assert fields["tokenizer.ggml.unknown_token_id"] == 259
    again = load(tmp_path / "w.gguf")
    assert again.config.eos == (258, 259)
    again.save(tmp_path / "again")  # what the file says of special tokens stays
    to_gguf(tmp_path / "x.gguf", load(tmp_path / "again"))
    assert gguf_format.gguf(tmp_path / "x.gguf").fields == fields
    assert tokenizers.from_gguf(gguf_format.gguf(tmp_path / "w.gguf")).encode("he").ids == [256]


def test_a_tokenizer_that_llama_cpp_lacks_is_refused_or_kept_as_text(tmp_path):
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1}, "a"))
    model = random(llama.Config(**SIZES | dict(layers=1), eos=(1, 2, 3, 4, 5)))
    model = Model(model.config, model.tensors, tokenizer, "random")
    with pytest.raises(ValueError, match=r"cannot be written for llama\.cpp: its model is W"):
        to_gguf(tmp_path / "w.gguf", model)
    with pytest.warns(UserWarning, match=r"will not stop at \[4, 5\]: a GGUF file names three end"):
        to_gguf(tmp_path / "w.gguf", model, tokenizer=False)
    assert gguf_format.gguf(tmp_path / "w.gguf").fields["tokenizer.ggml.model"] == "none"
    assert load(tmp_path / "w.gguf").tokenizer.encode("b").ids == [1]
