"""Tokenizers as the fields of a GGUF file, and the fields as tokenizers that do the same."""

import json
import pathlib

import pytest
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from jaxmem.formats import tokenizers
from jaxmem.formats.gguf import Gguf
from jaxmem.interop import gguf_tokenizer

TEXT = "In 1984  he'd paid 12345 kr. for it,\n\n\tnaïve, 東京 hehe hell o<|x|> \r\n"
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
LEVEL = [*ALPHABET, "he", "ll", "hell", "Ġhe", "19", "<s>", "<|x|>"]
MERGES = ["h e", "l l", "he ll", "Ġ he", "1 9"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
PIECES = ["<unk>", "<s>", "</s>", *BYTES, "▁", "h", "e", "l", "o", "▁h", "he", "▁he", "ll", "▁▁"]
SCORES = [0.0] * 264 + [-2.0, -1.0, -3.0, -4.0, -5.0]


def described(arch="llama", **fields):
    fields = {f"tokenizer.ggml.{name}": value for name, value in fields.items()}
    fields["general.architecture"] = arch
    return tokenizers.from_gguf(Gguf(pathlib.Path("some.gguf"), fields, {}))


def byte_level(pre, **fields):
    fields = {"model": "gpt2", "pre": pre, "tokens": LEVEL, "merges": MERGES} | fields
    return described(token_type=[1] * 261 + [3, 3], **fields)


def pieces(arch="llama", user=4, **fields):
    types = [2, 3, 3, *[6] * 256, *[1] * 9, user]
    tokens = PIECES if arch == "llama" else [*PIECES[:-1], "  "]
    fields = {"model": "llama", "tokens": tokens, "scores": SCORES, "bos_token_id": 1} | fields
    return described(arch, token_type=types, **fields)


TOKENIZERS = {
    "gpt-2": lambda: byte_level("gpt-2"),
    "smollm": lambda: byte_level("smollm"),
    "qwen2": lambda: byte_level("qwen2"),
    "default": lambda: byte_level("default", add_eos_token=True, eos_token_id=262),
    "llama-bpe": lambda: byte_level("llama-bpe", bos_token_id=261),
    "sentencepiece": lambda: pieces(user=1),
    "no prefix": lambda: pieces(user=1, add_space_prefix=False, add_bos_token=False),
    "gemma": lambda: pieces("gemma3"),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_fields_describe_a_tokenizer_that_gives_the_same_ids(name):
    tokenizer, arch = TOKENIZERS[name](), "gemma3" if name == "gemma" else "llama"
    fields = gguf_tokenizer.fields(tokenizer, 300, arch)
    again = described(arch, **fields)
    assert again.encode(TEXT).ids == tokenizer.encode(TEXT).ids
    assert len(fields["tokens"]) == 300 and fields["tokens"][299] == "[PAD299]"
    assert fields["token_type"][299] == 5
    if fields["model"] == "gpt2":
        assert fields["pre"] == name and fields["token_type"][261:263] == [3, 3]
    else:
        assert fields["token_type"][:4] == [2, 3, 3, 6]


def test_a_published_llama_s_tokenizer_is_written_with_scores_in_the_order_of_its_merges():
    tokenizer = pieces(user=1)
    tokenizer.normalizer, tokenizer.pre_tokenizer = None, pre_tokenizers.Metaspace(split=False)
    fields = gguf_tokenizer.fields(tokenizer, len(PIECES), "llama")
    scores = dict(zip(fields["tokens"], fields["scores"]))
    assert sorted(PIECES[-5:], key=scores.get, reverse=True) == ["he", "▁h", "▁he", "ll", "▁▁"]
    assert fields["add_space_prefix"] and fields["add_bos_token"] and fields["bos_token_id"] == 1
    assert fields["unknown_token_id"] == 0


def changed(tokenizer, **parts):
    """The tokenizer with other parts, or with another value in its model."""
    spec = json.loads(tokenizer.to_str())
    spec["model"] |= parts.pop("model", {})
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    return tokenizer


def with_token(tokenizer, token):
    tokenizer.add_tokens([token])
    return tokenizer


TWICE = processors.TemplateProcessing("<s> <s> $A", special_tokens=[("<s>", 261)])
UNKNOWN = {
    "words": (lambda: Tokenizer(models.WordLevel({"a": 0}, "a")), "WordLevel, expected BPE"),
    "unigram": (lambda: Tokenizer(models.Unigram([("a", 0.0)])), "Unigram, expected BPE"),
    "another split": (
        lambda: changed(
            byte_level("gpt-2"),
            pre_tokenizer=pre_tokenizers.Sequence(
                [pre_tokenizers.Split(Regex("x"), "isolated"), pre_tokenizers.ByteLevel(False)]
            ),
        ),
        "for which no name of llama.cpp is known",
    ),
    "lower case": (
        lambda: changed(byte_level("gpt-2"), normalizer=normalizers.Lowercase()),
        "no name of llama.cpp",
    ),
    "whole tokens first": (
        lambda: changed(byte_level("gpt-2"), model={"ignore_merges": True}),
        "no name of llama.cpp",
    ),
    "lower case pieces": (
        lambda: changed(pieces(user=1), pre_tokenizer=pre_tokenizers.Whitespace()),
        "its step Whitespace is none of",
    ),
    "no bytes": (lambda: changed(pieces(user=1), model={"byte_fallback": False}), "neither"),
    "another order": (
        lambda: changed(pieces(user=1), model={"merges": [["h", "e"], ["l", "l"]]}),
        "merges are not those of SentencePiece",
    ),
    "spaces in front": (
        lambda: with_token(byte_level("gpt-2"), AddedToken("<mask>", lstrip=True)),
        "'<mask>' takes spaces",
    ),
    "two BOS": (
        lambda: changed(byte_level("gpt-2"), post_processor=TWICE),
        "more than BOS",
    ),
    "more tokens than rows": (
        lambda: with_token(byte_level("gpt-2"), AddedToken("z" * 9)),
        "a token 263, but the model 263 tokens",
    ),
    "plain": (
        lambda: changed(byte_level("gpt-2"), pre_tokenizer=None, decoder=decoders.Fuse()),
        "neither byte-level BPE nor SentencePiece",
    ),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_tokenizer_that_llama_cpp_does_not_have_is_refused(name):
    build, message = UNKNOWN[name]
    with pytest.raises(ValueError, match=message):
        gguf_tokenizer.fields(build(), 263 if name.startswith("more") else 300, "llama")


@pytest.mark.parametrize(
    ("eos", "named", "lost"),
    [
        ((), {}, []),
        ((4,), {"eos_token_id": 4}, []),
        ((4, 5), {"eos_token_id": 4, "eot_token_id": 5}, []),
        ((4, 0, 5, 6), {"eos_token_id": 4, "eot_token_id": 5, "eom_token_id": 6}, []),
        ((4, 5, 6, 0, 7), {"eos_token_id": 4, "eot_token_id": 5, "eom_token_id": 6}, [7]),
    ],
)
def test_three_end_tokens_are_named_and_others_known_by_their_text_or_lost(eos, named, lost):
    vocabulary = {"tokens": ["<|im_end|>", *"abcdefgh"]}
    assert gguf_tokenizer.end_fields(eos, vocabulary) == (named, lost)
