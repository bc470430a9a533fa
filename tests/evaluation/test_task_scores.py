"""A task's items have the scores that a model's logits and vectors give."""

import dataclasses

import jax
import numpy as np
import pytest
from chat_models import chatting
from test_task import TASKS

from jaxmem.evaluation import Task, score_task
from jaxmem.evaluation.task_scores import cut, encoded_pair

ITEMS = (
    {"q": "CAB", "texts": ["B", "ABBA", "CC"], "answer": 1},
    {"q": "BB", "texts": ["D", "C"], "answer": "C"},
)


class Letters:
    """Letters, without special tokens: A is 0."""

    def encode(self, text, add_special_tokens=True):
        return type("Encoding", (), {"ids": [ord(c) - 65 for c in text]})

    def decode(self, ids):
        return "".join(chr(65 + i) for i in ids)


MODEL = chatting(tokenizer=Letters())
RUN = jax.jit(lambda params, ids: jax.nn.log_softmax(MODEL.apply(params, ids)))


def logprob(context, text):
    ids = [ord(c) - 65 for c in context + text]
    rows = np.asarray(RUN(MODEL.params, np.array([ids + [0] * (8 - len(ids))], np.int32))[0])
    return float(rows[np.arange(len(context) - 1, len(ids) - 1), ids[len(context) :]].sum())


def embed(texts):
    return np.array([[text.count(c) for c in "ABC"] for text in texts], np.float32)


@pytest.mark.parametrize("metric", ["acc", "acc_norm"])
def test_the_most_probable_choice_is_the_answer(metric):
    task = Task("t", "choice", ITEMS, "{q}", "texts", metric=metric, delimiter="", group="q")
    found = score_task(task, MODEL)
    for item, scored in zip(ITEMS, found.items):
        truth = [logprob(item["q"], text) for text in item["texts"]]
        assert scored["logprobs"] == pytest.approx(truth, abs=1e-4)
        by = [x / len(t) if metric == "acc_norm" else x for x, t in zip(truth, item["texts"])]
        assert scored["answer"] == np.argmax(by) and scored["group"] == item["q"]
        assert scored["score"] == (scored["answer"] == 1)
    assert found.skipped == 0


def test_sentences_without_a_prompt_follow_the_first_token():
    task = Task("t", "choice", ({"a": "CAB", "b": "CBA", "answer": 0},), choices=("{a}", "{b}"))
    (item,) = score_task(task, MODEL).items  # bos is B
    assert item["logprobs"] == pytest.approx([logprob("B", "CAB"), logprob("B", "CBA")], abs=1e-4)
    assert encoded_pair(MODEL, "", "BAC") == ([1], [0, 2])


def test_items_longer_than_the_context_are_counted():
    model = dataclasses.replace(MODEL, config=dataclasses.replace(MODEL.config, context=5))
    task = Task("t", "choice", ITEMS, "{q}", "texts", delimiter="")
    found = score_task(task, model)
    assert [x["item"] for x in found.items] == [1] and found.skipped == 1
    with pytest.raises(ValueError, match="all 1 items of t are longer than the context"):
        score_task(dataclasses.replace(task, items=ITEMS[:1]), model)


def test_a_generated_text_ends_where_the_task_says():
    task = Task("t", "generation", ({"q": "CAB", "answer": "x"},), "{q}", max_new_tokens=5)
    (whole,) = score_task(task, MODEL).items
    assert len(whole["answer"]) == 5 and whole["score"] == 0
    end = whole["answer"][2]
    right = whole["answer"][: whole["answer"].index(end)]
    task = dataclasses.replace(task, until=(end,), items=({"q": "CAB", "answer": [right]},))
    assert score_task(task, MODEL).items[0]["answer"] == right
    assert cut("ab", ["", "c"]) == "ab"


def test_vectors_rank_documents_pairs_and_classes():
    documents = {"1": "AAA", "2": "CAC", "3": "B"}
    task = Task("t", "retrieval", ({"q": "AAC", "answer": {"2": 1.0}},), "{q}", documents=documents)
    (item,) = score_task(task, MODEL, embed=embed).items
    assert item["answer"] == ["1", "2", "3"] and item["score"] == pytest.approx(1 / np.log2(3))
    pairs = Task("t", "pairs", ({"a": "AA", "b": "AB", "answer": 3},), choices=("{a}", "{b}"))
    assert score_task(pairs, MODEL, embed=embed).items[0]["score"] == pytest.approx(0.5**0.5)
    train = tuple({"t": t, "answer": t[0]} for t in ("AA", "AB", "CB", "CC"))
    probe = Task("t", "probe", ({"t": "AAB", "answer": "A"},), "{t}", train=train)
    assert score_task(probe, MODEL, embed=embed).mean == 1
    odd = dataclasses.replace(probe, items=({"t": "D", "answer": "D"},))
    with pytest.raises(ValueError, match="label 'D', which the probe has not seen"):
        score_task(odd, MODEL, embed=embed)


def test_a_model_that_cannot_answer_is_refused():
    with pytest.raises(ValueError, match="no tokenizer, which the task sums takes"):
        score_task(TASKS["choice"], dataclasses.replace(MODEL, tokenizer=None))
    with pytest.raises(ValueError, match="alike wants vectors of texts"):
        score_task(TASKS["pairs"], MODEL)
