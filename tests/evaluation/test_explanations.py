"""What words are worth: gradients through a table that is looked up, Shapley values, and swaps."""

import dataclasses
import itertools
import math

import cheap_jit
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

import jaxmem as jm
from jaxmem.architectures import bert, llama
from jaxmem.evaluation import Task, kernel_shap
from jaxmem.evaluation.input_margin import InputMargin, asked_text
from jaxmem.evaluation.looked_up import rows_at, table_path, with_vectors
from jaxmem.evaluation.probe import Probe
from jaxmem.evaluation.task_scores import encoded_pair
from jaxmem.evaluation.word_swaps import swap_words
from jaxmem.training import JsonLines

WORDS = ["?", "good", "bad", "aa", "film", "and", "so", "the", "story", "was"]
ITEM = {"text": "the story was good", "answer": 0}
TASK = Task("mood", "choice", (ITEM,), "so {text} film", ("good", "bad"))
PROBED = Task("mood", "probe", (ITEM,), "so {text}", train=(ITEM, {"text": "so", "answer": 1}))


def tokenizer_of(words):
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


@pytest.fixture(scope="module")
def language_model():
    sizes = {"width": 16, "ffn": 16, "layers": 1, "heads": 1, "kv_heads": 1, "head_dim": 16}
    config = llama.Config(vocab=len(WORDS), context=16, tied=True, **sizes)
    ids = jnp.zeros((1, 1), jnp.int32)
    params = cheap_jit.jit(llama.module(config).init)(jax.random.key(0), ids)["params"]
    return jm.models.Model(config, params, tokenizer_of(WORDS), "random")


def test_a_text_with_its_own_vectors_gives_what_its_ids_give(language_model):
    params, ids = language_model.params, jnp.array([[3, 5, 7]])
    path = table_path(language_model)
    own = rows_at(params, path, ids)
    np.testing.assert_allclose(
        language_model.apply(with_vectors(params, path, own), ids),
        language_model.apply(params, ids),
        atol=1e-5,
    )
    with pytest.raises(ValueError, match=r"ids of shape \(1, 2\) are looked up, expected \(1, 3\)"):
        language_model.apply(with_vectors(params, path, own), ids[:, :2])


def test_the_margin_is_that_of_the_loglikelihoods_and_its_gradient_is_complete(language_model):
    margin = InputMargin(language_model)
    text = asked_text(language_model, TASK, ITEM, "text", 0)
    assert text.words.tolist()[:6] == [-1, 0, 1, 2, 3, -1] and text.count == 4
    logprobs = []
    for choice in (" good", " bad"):
        (*context,), (target,) = encoded_pair(language_model, "so the story was good film", choice)
        logits = language_model.apply(language_model.params, jnp.array([context]))
        logprobs.append(jax.nn.log_softmax(logits[0, -1])[target])
    x = margin.vectors(text)
    found = margin.margin(x, *margin.arguments(text))
    assert float(found) == pytest.approx(float(logprobs[0] - logprobs[1]), abs=1e-4)
    worth, whole, missing = margin.integrated(text)
    assert worth.shape == (4,) and np.ptp(worth) > 0
    assert worth.sum() + missing == pytest.approx(whole) and abs(missing) < 0.02 * abs(whole) + 1e-3


def test_a_swap_by_the_gradient_harms_the_answer(language_model):
    margin = InputMargin(language_model)
    text = asked_text(language_model, TASK, ITEM, "text", 0)
    swapped = swap_words(margin, text, swaps=2)
    assert swapped.after < swapped.before and len(swapped.swaps) == 2
    assert all(old in ITEM["text"].split() and new in WORDS for old, new in swapped.swaps)


def test_an_encoder_is_asked_through_its_probe():
    config = bert.Config(vocab=len(WORDS), width=8, ffn=8, layers=1, heads=2, context=16)
    ids = jnp.zeros((1, 4), jnp.int32)
    params = cheap_jit.jit(bert.module(config).init)(jax.random.key(0), ids)["params"]
    params = jm.encode(params, jm.choose(params, {".*/kernel": jm.Int(8)}))
    model = jm.models.Model(config, params, tokenizer_of(WORDS), "random")
    weights = np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)
    margin = InputMargin(model, Probe(weights, (0, 1)))
    worth, whole, missing = margin.integrated(asked_text(model, PROBED, ITEM, "text", 1))
    assert worth.shape == (4,) and abs(missing) < 0.05 * abs(whole) + 1e-3


def exact_shapley(value, n):
    """By the definition: the mean of what a player adds over all orders."""
    found = np.zeros(n)
    for i in range(n):
        for size in range(n):
            for others in itertools.combinations(set(range(n)) - {i}, size):
                chosen = np.zeros((2, n), bool)
                chosen[:, list(others)] = True
                chosen[1, i] = True
                without, with_it = value(chosen)
                weight = math.factorial(size) * math.factorial(n - size - 1) / math.factorial(n)
                found[i] += weight * (with_it - without)
    return found


@pytest.mark.parametrize(("n", "samples"), [(1, 4), (2, 2), (6, 62), (8, 300)])
def test_shapley_values_of_few_players_are_exact(n, samples):
    table = np.random.default_rng(n).normal(size=2**n)
    value = lambda chosen: table[chosen @ (1 << np.arange(n))]
    np.testing.assert_allclose(
        kernel_shap(value, n, samples=samples), exact_shapley(value, n), atol=1e-9
    )


def test_shapley_values_of_many_players_are_near_and_add_up():
    w = np.arange(12.0)
    value = lambda chosen: chosen @ w + 5 * (chosen[:, 0] & chosen[:, 1])
    found = kernel_shap(value, 12, samples=400, seed=1)
    assert found.sum() == pytest.approx(w.sum() + 5)
    np.testing.assert_allclose(found, w + 2.5 * (np.arange(12) < 2), atol=0.5)
    with pytest.raises(ValueError, match="samples 0"):
        kernel_shap(value, 12, samples=0)


@pytest.mark.slow
def test_a_card_explains_in_every_way_and_says_what_the_gradients_miss(language_model, tmp_path):
    coarse = jm.choose(language_model.params, {".*/kernel": jm.Int(2)})
    coarse = jm.encode(language_model.params, coarse)
    model = dataclasses.replace(language_model, tensors=coarse)
    items = (ITEM, {"text": "aa film was bad", "answer": 1})
    task = dataclasses.replace(TASK, items=items)
    kinds = ("gradients", "shapley", "swaps")
    writer = JsonLines(tmp_path / "scalars.jsonl")
    card = jm.card(model, language_model, data=[task], explain=kinds, out=tmp_path, writer=writer)
    (numbers,) = writer.history
    changed = card.rows["model"]["tasks"]["mood"]["changed"]
    assert numbers["step"] == 0 and numbers["tasks/mood/changed"] == changed
    same, other = card.rows["dense"], card.rows["model"]
    assert list(other["attribution"]) == ["gradients", "shapley"]
    for kind, column in same["attribution"].items():
        assert column["rank_correlation"].mean == pytest.approx(1), kind
    assert other["attribution"]["gradients"]["rank_correlation"].mean < 1
    assert 0 < same["attribution"]["gradients"]["completeness_gap_share"] <= 0.02
    assert other["robustness"]["swaps"]["margin_lost"].mean > 0
    assert same["robustness"]["swaps"]["words"] == 2
    card.save(tmp_path)
    page = (tmp_path / "attribution.html").read_text()
    assert page.count("<tr>") == 2 and page.count("<span") == 8 and ">story</span>" in page
    assert (tmp_path / "attribution.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"explain is .*lime.*expected some of occlusion"):
        jm.card(model, language_model, data=[task], explain=["lime"])
