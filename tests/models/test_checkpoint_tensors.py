"""Tensors of a checkpoint by name: old names, a head of its own, what is not read."""

import contextlib

import numpy as np
import pytest

from jaxmem.architectures import encoder, gpt2, llama
from jaxmem.architectures.weights.weight_map import WeightMap
from jaxmem.core.lazy import Lazy
from jaxmem.models.checkpoint_tensors import (
    assemble,
    bare_name,
    warn_of_unread,
    with_its_head,
    without_missing_head,
)
from jaxmem.models.model import family

SIZES = dict(vocab=6, width=4, ffn=8, layers=1, heads=2, kv_heads=1, head_dim=2)
TIED = llama.Config(**SIZES, tied=True)
MAPS = {"a/scale": WeightMap(("a.weight",), (3,))}


def lazy(array):
    return Lazy(array.shape, array.dtype, lambda _: array)


def ones(*shape, dtype=np.float32):
    return lazy(np.ones(shape, dtype))


@pytest.mark.parametrize(
    "name, bare",
    [
        ("model.layers.0.norm.weight", "layers.0.norm.weight"),
        ("module._orig_mod.model.norm.weight", "norm.weight"),
        ("model.language_model.model.norm.weight", "norm.weight"),
        ("bert.encoder.layer.0.output.LayerNorm.beta", "encoder.layer.0.output.LayerNorm.bias"),
        ("gamma", "gamma"),
    ],
)
def test_a_name_is_read_without_its_prefixes_and_in_today_s_words(name, bare):
    assert bare_name(name) == bare


@pytest.mark.parametrize(
    "tensors, message",
    [
        ({}, r"x has no tensor a\.weight"),
        ({"a.qweight": ones(3)}, r"has no tensor a\.weight, and has a\.qweight: these are codes"),
        ({"b.switch_mlp.c": ones(3)}, r"and has b\.switch_mlp\.c: experts in one tensor, as MLX"),
        ({"a.weight": ones(3), "model.a.weight": ones(3)}, r"a\.weight and model\.a\.weight"),
        ({"a.weight": ones(3), "a.gamma": ones(3)}, r"a\.weight and a\.gamma"),
        ({"a.weight": ones(3, dtype=np.int8)}, "a.weight holds int8, expected floating-point"),
        ({"a.weight": ones(3), "a.weight_scale_inv": ones(1)}, "multiplied by a.weight_scale_inv"),
        ({"a.weight": ones(4)}, r"a\.weight makes \(4,\), a/scale expects \(3,\)"),
    ],
)
def test_tensors_that_make_no_parameter_are_named(tensors, message):
    with pytest.raises(ValueError, match=message):
        assemble(MAPS, tensors, np.dtype("f4"), "x")


def test_a_missing_head_says_how_to_tie_it():
    maps = {"head/kernel": WeightMap(("lm_head.weight",), (4, 6), np.transpose)}
    with pytest.raises(ValueError, match=r"config.json must set tie_word_embeddings"):
        assemble(maps, {}, np.dtype("f4"), "x")


@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_tied_model_is_untied_by_a_head_that_differs_only(prefix):
    embed = lazy(np.arange(24, dtype=np.float32).reshape(6, 4))
    tensors = {f"{prefix}embed_tokens.weight": embed}
    assert with_its_head(TIED, tensors) == TIED
    assert with_its_head(TIED, tensors | {"lm_head.weight": embed}) == TIED
    for head in (ones(6, 4), ones(7, 4)):
        assert not with_its_head(TIED, tensors | {"lm_head.weight": head}).tied
    config = gpt2.Config(vocab=6, width=4, layers=1, heads=2)
    tensors = {"transformer.wte.weight": embed, "lm_head.weight": ones(6, 4)}
    assert not with_its_head(config, tensors).tied


@pytest.mark.parametrize(
    "name, message",
    [
        ("score.weight", r"x holds tensors .* not use \(1\): score\.weight\. What they"),
        ("model.layers.3.mlp.up_proj.weight", "layers 3 to 3, as its configuration has 1 layers"),
        ("model.layers.0.self_attn.q_proj.bias", r"q_proj\.bias"),
    ],
)
def test_tensors_that_are_not_used_are_named(name, message):
    with pytest.warns(UserWarning, match=message):
        warn_of_unread(TIED, llama.weights(TIED), {name: ones(3)}, "x")


def test_constants_and_an_equal_head_need_no_word():
    names = ["model.layers.0.self_attn.rotary_emb.inv_freq", "lm_head.weight", "h.0.attn.bias"]
    warn_of_unread(TIED, llama.weights(TIED), {name: ones(3) for name in names}, "x")


@pytest.mark.parametrize("beside, warned", [("config.json", True), ("modules.json", False)])
def test_a_head_without_a_tensor_is_left_out_and_said(beside, warned, tmp_path):
    config = encoder.Config(vocab=6, width=4, ffn=8, layers=1, heads=2, head="masked_lm")
    (tmp_path / beside).write_text("[]")
    names = lambda c: [n for x in family(c).weights(c).values() for n in x.names]
    tensors = dict.fromkeys(names(config.without_head()), ones(4))
    expected = pytest.warns(UserWarning, match="config.json names a head")
    with expected if warned else contextlib.nullcontext():
        bare = without_missing_head(config, tensors, tmp_path / "config.json")
    assert bare == config.without_head()
    tensors = dict.fromkeys(names(config), ones(4))
    assert without_missing_head(config, tensors, tmp_path / "config.json") == config
