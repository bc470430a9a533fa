"""A card of an encoder has the ranks of sentence pairs and the answers of a probe."""

import dataclasses

import cheap_jit
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

import jaxmem as jm
from jaxmem.architectures import bert
from jaxmem.evaluation import Task

WORDS = ["?", "a", "film", "and", "so", "the", "story", "was"]
TEXTS = [" ".join(np.random.default_rng(i).permutation(WORDS[1:])[:5]) for i in range(12)]
PAIRS = tuple({"a": a, "b": b, "answer": i} for i, (a, b) in enumerate(zip(TEXTS, TEXTS[::-1])))
LABELS = tuple({"text": text, "answer": "film" in text.split()[:2]} for text in TEXTS)
WRONG = [item | {"answer": not item["answer"]} for item in LABELS[:6]]
TASKS = [
    Task("alike", "pairs", PAIRS[:6], choices=("{a}", "{b}")),
    Task("mood.b", "probe", LABELS[6:], "{text}", train=LABELS[:6] + LABELS[:1]),
    Task("mood.a", "probe", LABELS[6:], "{text}", train=tuple(WRONG)),
]


def test_an_encoder_has_a_card(tmp_path):
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    config = bert.Config(vocab=8, width=8, ffn=8, layers=1, heads=2, context=16)
    ids = jnp.zeros((1, 4), jnp.int32)
    params = cheap_jit.jit(bert.module(config).init)(jax.random.key(0), ids)["params"]
    dense = jm.models.Model(config, params, tokenizer, "random")
    coarse = jm.encode(params, jm.choose(params, {".*/kernel": jm.Int(2)}))
    model = dataclasses.replace(dense, tensors=coarse)
    card = jm.card(model, dense, data=TASKS, out=tmp_path)
    for row in card.rows.values():
        columns = {"space", "tasks", "calibration", "robustness", "attribution"}
        assert set(row) == columns and set(row["tasks"]) == {"alike", "mood.a", "mood.b"}
        assert "cache_per_token" not in row["space"]
    same, other = card.rows["dense"], card.rows["model"]
    assert same["tasks"]["alike"]["cosine_change"].mean == same["tasks"]["mood.b"]["changed"] == 0
    scores = [same["tasks"][f"mood.{x}"]["score"].mean for x in "ab"]
    assert sum(scores) == pytest.approx(1)  # a probe of the opposite labels
    assert same["attribution"]["occlusion"]["rank_correlation"].mean == pytest.approx(1)
    assert other["tasks"]["alike"]["cosine_change"].mean > 1e-3
    assert other["tasks"]["mood.b"]["total_variation"] > 0
    assert "| tasks alike score |" in card.markdown()
    choice = Task("sums", "choice", ({"text": "a", "answer": 0},), "{text}", ("a", "b"))
    with pytest.raises(ValueError, match="sums is of kind choice, expected one of"):
        jm.card(model, dense, data=[choice])
    with pytest.raises(ValueError, match=r"privacy wants .* a model that predicts text"):
        jm.card(model, dense, data=TASKS, seen="a", unseen="b")
