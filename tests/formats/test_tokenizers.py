"""Tokenizers rebuilt from the fields of a GGUF file, against the tokenizers they stand for."""

import json
import pathlib

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


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "t5"}, "a tokenizer 't5', expected gpt2, llama, bert"),
        ({"model": "gpt2"}, "a tokenizer 'gpt2'"),
        ({"model": "gpt2", "tokens": ["a"]}, "cannot be built: KeyError"),
        ({"model": "gpt2", "tokens": ["a"], "merges": [], "pre": "new"}, "'new' is unknown"),
        ({"model": "llama", "tokens": ["a"], "scores": [0.0]}, "cannot be built: KeyError"),
    ],
)
def test_a_vocabulary_that_cannot_be_built_is_one_clear_error(fields, message):
    with pytest.raises(ValueError, match=rf"some\.gguf has .*{message}"):
        described(**fields)


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
