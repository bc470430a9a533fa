"""The end tokens of a Hugging Face folder: generation_config.json, and what its template writes."""

import json

import pytest
from tokenizers import Tokenizer, models

from jaxmem.models.end_tokens import end_tokens

SPECIAL = ["<|im_end|>", "<|im_start|>", "<|endoftext|>", "<|done|>"]
NAMES = dict(zip(SPECIAL, range(1, 5)))


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    tokenizer.add_special_tokens(SPECIAL)
    return tokenizer


def write(folder, name, data):
    (folder / name).write_text(data if isinstance(data, str) else json.dumps(data))


def test_the_ids_of_both_configurations_are_joined(tmp_path):
    write(tmp_path, "generation_config.json", {"eos_token_id": [7, 9], "temperature": 0.6})
    assert end_tokens(tmp_path, None, (9, 8, -1)) == (9, 8, 7)
    write(tmp_path, "generation_config.json", {"eos_token_id": 3})
    assert end_tokens(tmp_path, None, ()) == (3,)


@pytest.mark.parametrize(
    "template",
    ["{{ m }}<|im_end|>", [{"name": "default", "template": "<|im_start|>{{ m }}<|im_end|>"}]],
)
def test_a_known_end_of_turn_that_the_template_writes_ends_the_model(template, tokenizer, tmp_path):
    assert end_tokens(tmp_path, tokenizer, (0,)) == (0,)  # no template
    write(tmp_path, "tokenizer_config.json", {"chat_template": template, "eos_token": "<|done|>"})
    assert end_tokens(tmp_path, tokenizer, (0,)) == (0, NAMES["<|im_end|>"])


@pytest.mark.parametrize("eos", ["<|done|>", {"content": "<|done|>", "lstrip": False}])
def test_the_tokenizer_s_end_counts_if_the_template_names_it(eos, tokenizer, tmp_path):
    write(tmp_path, "tokenizer_config.json", {"eos_token": eos})
    write(tmp_path, "chat_template.jinja", "{{ m + eos_token }}")
    assert end_tokens(tmp_path, tokenizer, ()) == (NAMES["<|done|>"],)


@pytest.mark.parametrize("data", ["{", "[]", {"eos_token_id": "2"}, {"eos_token_id": [None]}])
def test_a_damaged_generation_config_is_named(data, tmp_path):
    write(tmp_path, "generation_config.json", data)
    with pytest.raises(ValueError, match=r"generation_config\.json"):
        end_tokens(tmp_path, None, ())
