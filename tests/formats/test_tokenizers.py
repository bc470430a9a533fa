"""Tokenizers rebuilt from the fields of a GGUF file, against the tokenizers they stand for."""

import json
import pathlib

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from jaxmem.formats import tokenizers
from jaxmem.formats.gguf import Gguf
from jaxmem.models import load

TEXT = "In 1984  he'd paid 12345 kr. for it, ½ of what SHE'LL ask;\n\n\tnaïve, 東京 <|x|> \r\n"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {  # by llama.cpp's name, what the models' own tokenizer.json has before ByteLevel
    "gpt-2": [],
    "smollm": [pre_tokenizers.Digits(individual_digits=True)],
    "llama-bpe": [pre_tokenizers.Split(Regex(LLAMA3), "isolated")],
    "qwen2": [pre_tokenizers.Split(Regex(LLAMA3.replace("{1,3}", "")), "isolated")],
}


def described(**fields):
    fields = {f"tokenizer.ggml.{k}": v for k, v in fields.items()}
    return tokenizers.from_gguf(Gguf(pathlib.Path("some.gguf"), fields, {}))


def in_order(tokenizer):
    vocabulary = tokenizer.get_vocab()
    return sorted(vocabulary, key=vocabulary.get)


def trained(pre):
    tokenizer = Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    whole = pre in ("llama-bpe", "qwen2")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not whole)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*SPLITS[pre], level])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, show_progress=False, special_tokens=["<|x|>"], initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator([TEXT] * 3, trainer)
    return tokenizer


@pytest.mark.parametrize("pre", SPLITS)
def test_a_byte_level_tokenizer_gives_the_ids_of_its_original(pre):
    original = trained(pre)
    tokens = in_order(original)
    merges = [" ".join(m) for m in json.loads(original.to_str())["model"]["merges"]]
    types = [3, *[1] * (len(tokens) - 1)]
    fields = {"model": "gpt2", "pre": pre, "tokens": tokens, "merges": merges}
    found = described(**fields, token_type=types, add_bos_token=False)
    assert found.encode(TEXT).ids == original.encode(TEXT).ids
    assert found.decode(found.encode(TEXT).ids, skip_special_tokens=False) == TEXT


def test_a_sentencepiece_tokenizer_gives_the_ids_of_its_original(shared_data):
    original = Tokenizer.from_file(str(shared_data / "stories260K" / "tokenizer.json"))
    text = (shared_data / "tinystories_a.txt").read_text(encoding="utf-8")[:20_000] + TEXT
    types = [2, 3, 3, *[6] * 256, *[1] * 253]
    scores = [0.0] * 259 + [-float(i) for i in range(253)]
    fields = {"model": "llama", "tokens": in_order(original), "scores": scores}
    found = described(**fields, token_type=types, bos_token_id=1, unknown_token_id=0)
    assert found.encode(text).ids == [1, *original.encode(text).ids]
    assert found.decode(found.encode(text).ids) == text


def test_a_llama2c_tokenizer_gives_the_ids_of_its_original(shared_data):
    folder = shared_data / "stories260K"
    original = Tokenizer.from_file(str(folder / "tokenizer.json"))
    found = tokenizers.from_llama2c(folder / "tok512.bin", 512)
    text = (shared_data / "tinystories_a.txt").read_text(encoding="utf-8")[:20_000]
    assert found.encode(text).ids == [1, *original.encode(text).ids]
    assert found.encode(text, add_special_tokens=False).ids == original.encode(text).ids


def test_a_truncated_llama2c_tokenizer_is_one_clear_error(tmp_path):
    (tmp_path / "tok512.bin").write_bytes(b"\x07\x00\x00\x00\x00\x00\x00\x00\x05\x00\x00\x00<unk")
    with pytest.raises(ValueError, match=r"tok512\.bin is no llama2\.c tokenizer of 512 tokens"):
        tokenizers.from_llama2c(tmp_path / "tok512.bin", 512)


def test_gemma_s_spaces_are_stored_bare_and_nothing_is_put_before_the_text():
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "a", "▁", "b", "  ", "▁a", "▁▁b"]
    types = [3, 3, 3, 2, 1, 1, 1, 4, 1, 1]
    fields = {"tokenizer.ggml.model": "llama", "general.architecture": "gemma3"}
    more = {"tokens": tokens, "token_type": types, "scores": [-1000.0] * 10, "bos_token_id": 2}
    fields |= {f"tokenizer.ggml.{k}": v for k, v in more.items()}
    found = tokenizers.from_gguf(Gguf(pathlib.Path("gemma.gguf"), fields, {}))
    assert found.encode("a ab").ids == [2, 4, 8, 6]
    assert found.encode("a  a").ids == [2, 4, 7, 4]


BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
LEVEL = {"model": "gpt2", "tokens": [*BYTES, "ab", "<s>", "</s>"], "merges": ["a b"]}
PIECES = {"model": "llama", "tokens": ["<unk>", "<s>", "</s>", "▁", "a", "▁a"]}
PIECES |= {"scores": [0.0, 0.0, 0.0, -3.0, -2.0, -1.0], "token_type": [2, 3, 3, 1, 1, 1]}
WORDS = {"model": "bert", "tokens": ["[UNK]", "[CLS]", "[SEP]", "▁a", "b"]}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (PIECES, [1, 5]),
        (PIECES | {"bos_token_id": 2}, [2, 5]),
        (PIECES | {"bos_token_id": 0xFFFFFFFF}, [1, 5]),
        (PIECES | {"add_bos_token": False}, [5]),
        (PIECES | {"add_bos_token": False, "eos_token_id": 2, "add_eos_token": True}, [5, 2]),
        (PIECES | {"eos_token_id": 2, "add_eos_token": True}, [1, 5, 2]),
        (WORDS, [1, 3, 2]),
        (WORDS | {"cls_token_id": 2, "seperator_token_id": 1}, [2, 3, 1]),
        (LEVEL, [BYTES.index("a")]),
        (LEVEL | {"pre": "default", "bos_token_id": 257}, [BYTES.index("a")]),
        (LEVEL | {"pre": "llama-bpe"}, [BYTES.index("a")]),
        (LEVEL | {"pre": "llama-bpe", "bos_token_id": 257}, [257, BYTES.index("a")]),
        (LEVEL | {"pre": "qwen2", "add_bos_token": True}, [BYTES.index("a")]),
    ],
)
def test_a_missing_field_has_the_value_that_llama_cpp_takes(fields, expected):
    assert described(**fields).encode("a").ids == expected


def test_text_without_a_known_split_is_split_as_default_says():
    splits = described(**LEVEL).pre_tokenizer.pre_tokenize_str("it's $12345 a-b")
    pieces = ["it", "'", "s", "Ġ", "$", "123", "45", "Ġa", "-", "b"]
    assert [piece for piece, _ in splits] == pieces


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "t5"}, "a tokenizer 't5', expected gpt2, llama, bert"),
        ({"model": ["gpt2"]}, r"a tokenizer \['gpt2'\], expected"),
        ({"model": "gpt2"}, "a tokenizer 'gpt2' without a list of tokens"),
        ({"model": "gpt2", "tokens": ["a", 1]}, "a tokenizer 'gpt2' without a list of tokens"),
        ({"model": "gpt2", "tokens": ["a"]}, "cannot be built: .*no list of merges"),
        (LEVEL | {"merges": ["a"]}, "cannot be built: "),
        (LEVEL | {"merges": ["no such"]}, "cannot be built: "),
        (LEVEL | {"pre": "new"}, "'new' is unknown"),
        (LEVEL | {"pre": 3}, "3 is unknown"),
        (LEVEL | {"add_bos_token": 1}, "add_bos_token is 1, expected true or false"),
        (LEVEL | {"add_bos_token": True, "bos_token_id": 999}, "bos_token_id is 999"),
        (LEVEL | {"token_type": [1]}, "token_type is not one number for each of 259 tokens"),
        ({"model": "llama", "tokens": ["a"]}, "scores is not one number for each of 1 tokens"),
        ({"model": "llama", "tokens": ["a" * 2000], "scores": [0.0]}, "2000 characters, expected"),
        ({"model": "bert", "tokens": ["a"]}, "lacks .UNK., .CLS. or .SEP."),
    ],
)
def test_a_vocabulary_that_cannot_be_built_is_one_clear_error(fields, message):
    with pytest.raises(ValueError, match=rf"some\.gguf has .*{message}"):
        described(**fields)


def test_a_vocabulary_of_more_tokens_than_the_embedding_is_refused():
    fields = {f"tokenizer.ggml.{name}": value for name, value in PIECES.items()}
    file = Gguf(pathlib.Path("some.gguf"), fields, {"token_embd.weight": np.zeros((5, 2))})
    with pytest.raises(ValueError, match="a tokenizer of 6 tokens, but 5 rows"):
        tokenizers.from_gguf(file)


@pytest.mark.slow
def test_a_wordpiece_tokenizer_gives_the_ids_of_its_original():
    original = load("minilm-l6").tokenizer
    tokens = in_order(original)
    special = [t.startswith("[") and t.endswith("]") and len(t) > 2 for t in tokens]
    stored = [
        t if s else t.removeprefix("##") if t.startswith("##") and len(t) > 2 else "▁" + t
        for t, s in zip(tokens, special)
    ]
    types = [3 if s else 1 for s in special]
    found = described(model="bert", tokens=stored, token_type=types)
    assert found.encode(TEXT).ids == original.encode(TEXT).ids


@pytest.mark.slow
def test_smollm2_gives_back_its_text_and_splits_digits():
    tokenizer = load("smollm2-135m").tokenizer
    assert tokenizer.decode(tokenizer.encode(TEXT).ids) == normalizers.NFC().normalize_str(TEXT)
    assert tokenizer.encode("a  2020 ½").ids == [81, 256, 34, 32, 34, 32, 216, 16738]
    assert tokenizer.encode("<|im_start|>user\nhi<|im_end|>").ids == [1, 4093, 198, 6004, 2]
