"""Folders without tokenizer.json: the ids of the library that the vocabulary is of.

tests/reference/make_tokenizers.py writes the files, and says which library made the ids.
"""

import json
import pathlib
import shutil
import sys

import pytest

from jaxmem.models.tokenizer_files import read_tokenizer

FOLDER = pathlib.Path(__file__).parents[1] / "reference" / "tokenizers"
NAMES = sorted(path.name for path in FOLDER.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_a_vocabulary_gives_the_ids_of_its_library(name):
    tokenizer = read_tokenizer(FOLDER / name)
    for row in json.loads((FOLDER / name / "ids.json").read_text(encoding="utf-8")):
        assert tokenizer.encode(row["text"]).ids == row["ids"], row["text"]


@pytest.mark.parametrize("name", ["gpt2", "llama", "tiktoken"])
def test_ids_become_the_text_again(name):
    tokenizer = read_tokenizer(FOLDER / name)
    for row in json.loads((FOLDER / name / "ids.json").read_text(encoding="utf-8")):
        assert tokenizer.decode(row["ids"]) == row["text"]


@pytest.mark.parametrize(
    "name, file, data, message",
    [
        ("gpt2", "tokenizer_config.json", b'{"tokenizer_class": "CTRLTokenizer"}', "of 'CTRL' and"),
        (
            "llama",
            "tokenizer_config.json",
            b'{"tokenizer_class": "Camembert"}',
            "of 'Camembert' and",
        ),
        ("llama", "tokenizer.model", b"\x0a\xff\xff", "is no SentencePiece model"),
        ("tiktoken", "tokenizer.model", b"IQ== 0\nI= 1\n", "is no file of tiktoken"),
        ("gpt2", "merges.txt", b"x y\n", "a vocabulary that cannot be read"),
        ("gpt2", "added_tokens.json", b'{"<x>": 9999}', "the token '<x>' has the id 320, its file"),
    ],
)
def test_what_makes_no_tokenizer_is_a_warning_and_none(name, file, data, message, tmp_path):
    path = shutil.copytree(FOLDER / name, tmp_path / name)
    (path / file).write_bytes(data)
    with pytest.warns(UserWarning, match=f"{message}.*The model is loaded without a tokenizer"):
        assert read_tokenizer(path) is None


@pytest.mark.parametrize("name", ["gpt2", "llama", "tiktoken", "wordpiece"])
def test_a_missing_package_is_no_damaged_vocabulary(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ModuleNotFoundError, match="tokenizers"):
        read_tokenizer(FOLDER / name)
