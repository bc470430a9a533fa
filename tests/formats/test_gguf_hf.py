"""GGUF files of GPT-2 and BERT: names, orders and heads; and the tokens at which a file ends."""

import pathlib
import re

import gguf
import numpy as np
import pytest

from jaxmem.core.lazy import Lazy
from jaxmem.formats import gguf as gguf_format
from jaxmem.formats import gguf_end_tokens, gguf_hf
from jaxmem.models import gguf_models


@pytest.mark.parametrize("arch", ["gpt2", "bert"])
def test_gguf_names_are_those_of_the_reference(arch):
    number = {name: n for n, name in gguf.MODEL_ARCH_NAMES.items()}[arch]
    reference = gguf.get_tensor_name_map(number, 2)
    for theirs, ours in gguf_hf.NAMES[arch].items():
        candidates = {reference.get_name(p + ours.format(1)) for p in ("", "transformer.", "bert.")}
        assert candidates & {theirs, f"blk.1.{theirs}"}, theirs


def test_gpt2_s_kernels_are_turned_and_its_other_tensors_are_not():
    sizes = {"embedding_length": 2, "block_count": 1, "attention.head_count": 1}
    sizes |= {"feed_forward_length": 6, "context_length": 4, "attention.layer_norm_epsilon": 1e-5}
    fields = {"general.architecture": "gpt2"} | {f"gpt2.{k}": x for k, x in sizes.items()}
    held = lambda *shape: Lazy(shape, np.dtype("f4"), lambda _: np.zeros(shape, np.float32))
    tensors = {"token_embd.weight": held(8, 2), "blk.0.attn_qkv.weight": held(6, 2)}
    file = gguf_format.Gguf(pathlib.Path("a.gguf"), fields, tensors)
    config, maps = gguf_models.config_and_weights(file)
    assert config.layers == 1 and maps["embed/embedding"].names == ("token_embd.weight",)
    kernel = np.arange(12, dtype=np.float32).reshape(6, 2)
    np.testing.assert_array_equal(maps["layers/attn/qkv/kernel"].fn(kernel), kernel.T)
    np.testing.assert_array_equal(maps["embed/embedding"].fn(kernel), kernel)


@pytest.mark.parametrize(
    ("arch", "name"),
    [("gpt2", "token_embd.bias"), ("gpt2", "attn_qkv.weight"), ("bert", "blk.0.attn_qkv.weight")],
)
def test_a_tensor_that_would_be_left_out_is_refused(arch, name):
    file = gguf_format.Gguf(pathlib.Path("some.gguf"), {"general.architecture": arch}, {name: None})
    message = f"has 1 tensors that a {arch} does not compute with here, such as {name}"
    with pytest.raises(ValueError, match=re.escape(message)):
        gguf_hf.sources(file)


def test_a_head_of_bert_is_named():
    head = {"cls.weight": None, "cls.output.bias": None}
    bert = gguf_format.Gguf(pathlib.Path("b.gguf"), {"general.architecture": "bert"}, head)
    with pytest.warns(UserWarning, match=r"b\.gguf has a head, cls\.weight, which is left out"):
        assert gguf_hf.sources(bert) == {}


def described(vocab=8, **fields):
    """A file whose fields of the tokenizer are `fields`, with a vocabulary of `vocab` tokens."""
    fields = {f"tokenizer.ggml.{name}": value for name, value in fields.items()}
    embedding = Lazy((vocab, 4), np.dtype("float32"), lambda _: np.zeros((vocab, 4)))
    return gguf_format.Gguf(pathlib.Path("some.gguf"), fields, {"token_embd.weight": embedding})


TOKENS = ["<unk>", "</s>", "<|im_end|>", "a", "<|end|>", "<|eot_id|>"]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, []),
        ({"eos_token_id": 2}, [2]),
        ({"eos_token_id": 2, "eot_token_id": 5, "eom_token_id": 7}, [2, 5, 7]),
        ({"eos_token_id": 2, "eot_token_id": 2}, [2]),
        ({"eos_token_id": 0xFFFFFFFF}, []),
        ({"tokens": TOKENS}, [2, 4, 5]),
        ({"tokens": TOKENS, "eos_token_id": 4}, [4, 2, 5]),
        ({"tokens": TOKENS, "token_type": [2, 3, 1, 1, 1, 1]}, [1, 2, 4, 5]),
        ({"tokens": TOKENS, "token_type": [2, 4, 3, 1, 3, 3]}, [2, 4, 5]),
        ({"tokens": ["<|end|>", "<|return|>", "<|call|>"]}, [1, 2]),
        ({"tokens": "<|end|>", "token_type": 3}, []),
    ],
)
def test_a_model_ends_at_the_tokens_that_are_named_or_known_by_their_text(fields, expected):
    assert gguf_end_tokens.end_tokens(described(**fields), 8) == expected


def test_an_id_that_is_none_of_the_vocabulary_is_ignored_with_a_warning():
    with pytest.warns(UserWarning, match=r"some\.gguf has tokenizer\.ggml\.eot_token_id = 8, but"):
        assert gguf_end_tokens.end_tokens(described(eos_token_id=1, eot_token_id=8), 8) == [1]
    with pytest.raises(ValueError, match=r"some\.gguf has .*eos_token_id = 'two', expected the id"):
        gguf_end_tokens.end_tokens(described(eos_token_id="two"), 8)
