"""A tokenizer.json is read as it will be used, or refused with the file's name."""

import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from jaxmem.models.tokenizer_files import read_chat_template, read_tokenizer


def test_a_tokenizer_pads_and_cuts_nothing(tmp_path):
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=9)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert read_tokenizer(tmp_path).encode("a a a").ids == [0, 0, 0]


def test_a_folder_without_a_tokenizer_has_none(tmp_path):
    assert read_tokenizer(tmp_path) is None


@pytest.mark.parametrize("data", [b"{}", b"\xff"])
def test_a_broken_tokenizer_is_one_clear_error(data, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(data)
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        read_tokenizer(tmp_path)


def test_a_template_of_a_token_that_is_not_there_is_one_clear_error(tmp_path):
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, "a"))
    tokenizer.post_processor = processors.TemplateProcessing("a $A", None, [("a", 0)])
    spec = json.loads(tokenizer.to_str())
    spec["post_processor"]["special_tokens"] = {}
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(ValueError, match=r"tokenizer\.json is no tokenizer: no entry"):
        read_tokenizer(tmp_path)


def test_word_pieces_without_the_token_of_unknown_words_are_refused(tmp_path):
    pieces = models.WordPiece({"a": 0, "##b": 1}, unk_token="[UNK]")
    Tokenizer(pieces).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"tokenizer\.json: the token of unknown words is '\[UNK"):
        read_tokenizer(tmp_path)


def test_a_token_of_a_huge_id_is_refused(tmp_path):
    words = {"model": {"type": "WordLevel", "vocab": {"a": 2**31}, "unk_token": "a"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(ValueError, match=r"tokenizer\.json: a token has the id 2147483648"):
        read_tokenizer(tmp_path)


SEVERAL = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]


@pytest.mark.parametrize(
    ("template", "text"), [("{{ m }}", "{{ m }}"), (SEVERAL, "d"), (None, None)]
)
def test_the_default_chat_template_is_read(template, text, tmp_path):
    assert read_chat_template(tmp_path) is None
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    assert read_chat_template(tmp_path) == text
    (tmp_path / "chat_template.jinja").write_text("{{ file }}")
    assert read_chat_template(tmp_path) == "{{ file }}"
