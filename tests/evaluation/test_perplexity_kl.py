"""Perplexity, KL to the dense model, and ranks equal what a few lines of NumPy compute."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

import jaxmem as jm
from jaxmem.architectures import bert
from jaxmem.evaluation.embeddings import evaluate_embeddings, sentence_embedder
from jaxmem.evaluation.perplexity_kl import evaluate
from jaxmem.evaluation.result import Evaluation
from jaxmem.models import Model

VOCAB = 12
TEXT = np.random.default_rng(0).integers(0, VOCAB, 103)
TABLE = jax.random.normal(jax.random.key(0), (VOCAB, VOCAB)) * 3
OTHER = TABLE + jax.random.normal(jax.random.key(1), (VOCAB, VOCAB))


def bigram(table, ids):
    return table[ids]


def expected(table, other=None, window=8):
    """(window means of NLL, of KL(other ‖ table), of top-1 agreement)."""
    log_q, log_p = (np.asarray(jax.nn.log_softmax(t), np.float64) for t in (table, other))
    text = TEXT[: len(TEXT) // window * window].reshape(-1, window)
    now, then = text[:, :-1], text[:, 1:]
    kl = (np.exp(log_p) * (log_p - log_q)).sum(1)
    same = log_p.argmax(1) == log_q.argmax(1)
    return -log_q[now, then].mean(1), kl[now].mean(1), same[now].mean(1)


def test_a_model_that_knows_nothing_is_as_perplexed_as_its_vocabulary_is_large():
    e = evaluate(lambda p, ids: jnp.zeros((*ids.shape, VOCAB)), (), TEXT, window=16)
    assert e.perplexity.mean == pytest.approx(VOCAB, rel=1e-6)
    assert (e.tokens, e.resident, e.kl) == (6 * 15, 0, None)


@pytest.mark.parametrize("batch", [1, 4, 64])
def test_every_figure_agrees_with_the_direct_computation(batch):
    e = evaluate(bigram, OTHER, TEXT, reference=(bigram, TABLE), window=8, batch=batch)
    nll, kl, same = expected(OTHER, TABLE)
    assert e.perplexity.mean == pytest.approx(np.exp(nll.mean()), rel=1e-5)
    assert e.kl.mean == pytest.approx(kl.mean(), rel=1e-5)
    assert e.agreement.mean == pytest.approx(same.mean(), rel=1e-6)
    assert e.dense_perplexity.mean == evaluate(bigram, TABLE, TEXT, window=8).perplexity.mean
    half = 2.2010 * nll.std(ddof=1) / np.sqrt(12)  # t at 11 degrees of freedom
    assert e.perplexity.low == pytest.approx(np.exp(nll.mean() - half), rel=1e-4)


@pytest.mark.parametrize("wrong", [-1, VOCAB, 2**32, 2**32 + 1])
def test_ids_outside_the_vocabulary_are_refused_before_they_are_cut_to_32_bits(wrong):
    with pytest.raises(ValueError, match=f"{wrong}.*expected 0..{VOCAB - 1}"):
        evaluate(bigram, TABLE, [*TEXT[:15], wrong], window=8)


def test_a_model_does_not_stray_from_itself():
    e = evaluate(bigram, TABLE, TEXT, reference=(bigram, TABLE), window=8)
    assert e.kl.mean == pytest.approx(0, abs=1e-6) and e.agreement.mean == 1
    assert e.perplexity == e.dense_perplexity


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_logits_are_scored_in_float32(dtype):
    half = TABLE.astype(dtype)
    e = evaluate(bigram, half, TEXT, reference=(bigram, half), window=8)
    exact = evaluate(bigram, half.astype(jnp.float32), TEXT, window=8)
    assert e.perplexity == exact.perplexity and e.kl.mean == pytest.approx(0, abs=1e-6)


def test_tokens_that_cannot_come_do_not_spoil_the_divergence():
    never = jnp.full((VOCAB, 1), -jnp.inf)
    wide = lambda table: jnp.concatenate([table, never], axis=1)
    e = evaluate(bigram, wide(OTHER), TEXT, reference=(bigram, wide(TABLE)), window=8)
    plain = evaluate(bigram, OTHER, TEXT, reference=(bigram, TABLE), window=8)
    assert e.kl.mean == pytest.approx(plain.kl.mean, rel=1e-5)


def test_windows_limits_what_is_read_and_progress_tells():
    calls = []
    said = lambda *step: calls.append(step)
    e = evaluate(bigram, TABLE, TEXT, window=8, windows=5, batch=2, progress=said)
    assert calls == [(2, 5), (4, 5), (5, 5)]
    short = evaluate(bigram, TABLE, TEXT[:47], window=8)
    assert e.perplexity.mean == pytest.approx(short.perplexity.mean) and e.tokens == 35


def test_one_window_has_no_interval_and_no_time():
    e = evaluate(bigram, TABLE, TEXT, window=103)
    assert e.perplexity.low is None and e.seconds_per_token is None


def test_encoded_params_run_lifted_and_are_counted_small():
    enc = jm.encode({"w": TABLE}, jm.choose({"w": TABLE}, {"w": jm.Int(8)}))
    apply = lambda p, ids: jax.nn.one_hot(ids, VOCAB) @ p["w"]
    e = evaluate(jm.lift(apply), enc, TEXT, reference=(apply, {"w": TABLE}), window=8)
    assert 0 < e.kl.mean < 1e-2 and e.kl.low < e.kl.mean < e.kl.high
    assert e.resident == jm.nbytes(enc) < TABLE.nbytes
    assert e.peak >= e.resident + 8 * VOCAB * 4


@pytest.mark.parametrize(
    "change, message",
    [
        ({"ids": TEXT[:7]}, "text has 7 tokens, expected at least 1 windows of 8"),
        ({"windows": 13}, "text has 103 tokens, expected at least 13 windows"),
        ({"windows": 0}, "windows 0"),
        ({"window": 1}, "window is 1"),
        ({"batch": 0}, "batch is 0"),
        ({"ids": np.append(TEXT, VOCAB)}, "ids reach 0..12, expected 0..11"),
        ({"ids": np.append(TEXT[:7], -1)}, "ids reach -1"),
        ({"reference": (bigram, TABLE[:, :5])}, "reference has logits"),
    ],
)
def test_what_cannot_be_evaluated_is_said(change, message):
    ids, options = change.get("ids", TEXT), {"window": 8} | change
    options.pop("ids", None)
    ids = ids[-8:] if len(ids) == 104 else ids
    with pytest.raises(ValueError, match=message.replace("0..12", r"\d\.\.12")):
        evaluate(bigram, TABLE, ids, **options)


@pytest.mark.parametrize("ids", [TEXT[None], TEXT.astype(float), "text"])
def test_a_text_is_a_list_of_integers(ids):
    with pytest.raises(TypeError, match="expected one list of integers"):
        evaluate(bigram, TABLE, ids, window=8)


def test_an_evaluation_survives_json_and_prints_what_was_measured():
    e = evaluate(bigram, OTHER, TEXT, reference=(bigram, TABLE), window=8)
    e = dataclasses.replace(e, file=1234)
    assert Evaluation.from_json(e.to_json()) == e
    names = [line.split()[0] for line in str(e).splitlines()]
    assert names[:3] == ["tokens", "resident", "peak"] and "spearman" not in names


SENTENCES = ["a", "a b", "a b c d", "b", "c c c c c d d d", "d a", "b a d", "c"]
PAIRS = list(zip(SENTENCES, SENTENCES[::-1])) + list(itertools.pairwise(SENTENCES))
SCORES = np.random.default_rng(2).normal(size=len(PAIRS))


def lengths(params, sentences):
    return np.array([[len(s), s.count("a"), 1.0] for s in sentences]) * params


def test_pairs_are_ranked_by_cosine():
    vectors = [lengths(1.0, pair) for pair in PAIRS]
    cosines = [u @ v / np.sqrt((u @ u) * (v @ v)) for u, v in vectors]
    e = evaluate_embeddings(lengths, np.ones(3), PAIRS, cosines, reference=(lengths, 2.0))
    assert e.spearman.mean > 0.99 and e.cosine.mean == pytest.approx(1)
    assert (e.tokens, e.resident) == (30, 24) and e.seconds_per_token > 0


def test_other_vectors_are_less_than_one_apart_in_cosine():
    bent = np.array([1.0, 1.2, 1.0])
    e = evaluate_embeddings(lengths, bent, PAIRS, SCORES, reference=(lengths, np.ones(3)))
    assert e.cosine.low < e.cosine.mean < e.cosine.high < 1
    assert Evaluation.from_json(e.to_json()) == e


@pytest.mark.parametrize(
    "params, scores, message",
    [(1.0, SCORES[1:], "15 pairs have 14 scores"), (np.nan, SCORES, "not all finite")],
)
def test_embeddings_that_cannot_be_ranked_are_refused(params, scores, message):
    with pytest.raises(ValueError, match=message):
        evaluate_embeddings(lengths, np.float64(params), PAIRS, scores)


@pytest.mark.slow
def test_sentences_are_embedded_as_if_one_at_a_time():
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate("?abcd")}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    config = bert.Config(vocab=5, width=8, ffn=8, layers=1, heads=2, context=10)
    ids = jnp.zeros((1, 4), jnp.int32)
    params = jax.jit(bert.module(config).init)(jax.random.key(0), ids)["params"]
    model = Model(config, params, words, "")
    vectors = sentence_embedder(model, batch=3)(params, SENTENCES)
    ids = jnp.asarray([words.encode(SENTENCES[2]).ids])
    alone = bert.embed(jax.jit(model.apply)(params, ids), ids >= 0)
    np.testing.assert_allclose(vectors[2], alone[0], atol=1e-5)


@pytest.mark.parametrize(
    "text, message",
    [
        ("[", "the JSON text of an Evaluation is no JSON"),
        ('{"tokens": 3}', "Evaluation: resident is missing"),
        ('{"tokens": 3, "resident": 1, "kl": {"mean": "a"}}', "Evaluation: kl.mean is 'a'"),
        ('{"tokens": 3, "resident": 1, "kk": 2}', "Evaluation: kk is 2, a field that is not known"),
    ],
)
def test_what_is_no_evaluation_is_refused_by_its_field(text, message):
    with pytest.raises(ValueError, match=message):
        Evaluation.from_json(text)
