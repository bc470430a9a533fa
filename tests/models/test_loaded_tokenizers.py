"""The tokenizer beside weights: one that cannot be theirs is refused, or left out with a word."""

import pytest
from checkpoints import VOCAB, random_tensors, write_gguf, write_llama2c, write_single
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from jaxmem.formats.tokenizers import surround
from jaxmem.models import generate, load


@pytest.fixture(scope="module")
def tensors():
    return random_tensors()


FIELDS = {
    "unknown": ({"model": "t5"}, "a tokenizer 't5', expected gpt2, llama, bert"),
    "no merges": ({"model": "gpt2", "tokens": ["a"]}, "no list of merges"),
    "no model": ({"tokens": ["a"]}, "a tokenizer None"),
    "too many": ({"model": "gpt2", "tokens": ["a"] * 321}, "321 tokens, but 320 rows"),
}


@pytest.mark.parametrize("name", FIELDS)
def test_weights_load_without_a_tokenizer_that_cannot_be_built(name, tensors, tmp_path):
    fields, message = FIELDS[name]
    path = write_gguf(tmp_path, tensors, tokenizer=fields)
    with pytest.warns(UserWarning, match=rf"model\.gguf has .*{message}.* without a tokenizer"):
        model = load(path)
    assert model.tokenizer is None and model.config.eos == (2,)


def test_a_gguf_without_a_vocabulary_loads_without_a_word(tensors, tmp_path):
    assert load(write_gguf(tmp_path, tensors, tokenizer={"model": "none"})).tokenizer is None


def tokenizer_of(size, added=0, around=0):
    """`size` words and then `added` tokens, of which the first `around` stand before a text."""
    tokenizer = Tokenizer(WordLevel({f"w{i}": i for i in range(size)}, unk_token="w0"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_tokens([f"<{i}>" for i in range(added)])
    surround(tokenizer, [f"<{i}>" for i in range(around)], [])
    return tokenizer


@pytest.mark.parametrize("write", [write_single, write_gguf, write_llama2c])
@pytest.mark.parametrize(
    ("sizes", "token"), [((VOCAB + 3,), f"'w{VOCAB}'"), ((VOCAB, 2, 2), "'<0>'")]
)
def test_a_tokenizer_larger_than_the_embedding_is_refused(write, sizes, token, tensors, tmp_path):
    path = write(tmp_path, tensors)
    tokenizer_of(*sizes).save(str(tmp_path / "tokenizer.json"))
    message = f"has {token} with the id {VOCAB}, expected ids below {VOCAB},"
    with pytest.raises(ValueError, match=message):
        load(path)


@pytest.mark.parametrize("sizes", [(VOCAB - 9,), (VOCAB - 2, 2, 2), (VOCAB, 1)])
def test_padding_covers_added_tokens_and_one_beyond_is_never_used(sizes, tensors, tmp_path):
    path = write_single(tmp_path, tensors)
    tokenizer_of(*sizes).save(str(tmp_path / "tokenizer.json"))
    model = load(path)
    assert generate(model, "w1 w2", max_new_tokens=1).ids.shape == (1, 1)
    if sizes == (VOCAB, 1):
        with pytest.raises(ValueError, match=f"to {VOCAB}, expected 0 to below {VOCAB}"):
            generate(model, "w1 <0>", max_new_tokens=1)


def test_a_saved_model_whose_tokenizer_was_exchanged_is_refused(tensors, tmp_path):
    load(write_single(tmp_path, tensors)).save(tmp_path / "saved")
    tokenizer_of(VOCAB + 1).save(str(tmp_path / "saved/tokenizer.json"))
    with pytest.raises(ValueError, match=f"saved has 'w{VOCAB}' with the id {VOCAB}"):
        load(tmp_path / "saved")
