"""Files become the batches that a training step of a model reads."""

import json
import types

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

import jaxmem as jm

WORDS = {w: i for i, w in enumerate(["?", "[CLS]", "[SEP]", "user", "assistant", "a", "b", "c"])}
TEMPLATE = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}assistant {% endif %}"


def model(**options):
    tokenizer = Tokenizer(models.WordLevel(WORDS, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    config = types.SimpleNamespace(context=8, eos=(2,), bos=None)
    return jm.models.Model(config, {}, tokenizer, "tiny", chat_template=TEMPLATE, **options)


def test_text_prompts_and_messages_become_batches_that_resume(tmp_path):
    rows = [{"text": "a b c"}, {"prompt": "a", "completion": "b"}] * 3
    rows += [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "c"}]}
    ]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = {"width": 8, "batch": 2, "seed": 3}
    stream = jm.models.packed_batches(model(), tmp_path / "x.jsonl", **options)
    first, state = next(stream), stream.state()
    assert {name: x.shape for name, x in first.items()} == dict.fromkeys(first, (2, 8))
    rest = [next(stream) for _ in range(4)]
    options["folder"] = tmp_path / "corpus"
    again = jm.models.packed_batches(model(), [tmp_path / "x.jsonl"], **options)
    again.restore(state)
    for batch in rest:
        np.testing.assert_equal(next(again), batch)


def test_a_model_says_what_stands_around_a_text_and_writes_messages(tmp_path):
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b c"}]
    rows = [{"text": "a b"}, {"messages": messages}]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    texts, found = model(), jm.models.documents(model(), tmp_path / "x.jsonl")
    assert [found[i]["ids"].tolist() for i in range(2)] == [[5, 6, 2], [3, 5, 4, 6, 7]]
    assert found[1]["mask"].astype(int).tolist() == [0, 0, 0, 1, 1]
    texts.tokenizer.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    assert jm.models.documents(texts, tmp_path / "x.jsonl")[0]["ids"].tolist() == [1, 5, 6, 2]


def test_what_a_model_cannot_read_is_said(tmp_path):
    (tmp_path / "x.txt").write_text("a b")
    with pytest.raises(ValueError, match="width is 9, and tiny has a context of 8"):
        jm.models.packed_batches(model(), tmp_path / "x.txt", width=9, batch=1)
    with pytest.raises(ValueError, match="has no tokenizer"):
        jm.models.documents(jm.models.Model(None, {}, None, "bare"), tmp_path / "x.txt")
