"""A continuation has the logprob that the model gives it, however many share its context."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from reference_models import member, reference

import jaxmem as jm
from jaxmem.architectures import llama
from jaxmem.models import Model
from jaxmem.models.continuation_scores import ContinuationScorer

RNG = np.random.default_rng(0)
CONTEXTS = [RNG.integers(1, 30, n).tolist() for n in (1, 2, 9, 10, 14, 15, 15)]


def requests():
    """Continuations of 1 to 9 tokens: several of most contexts, and one that comes twice."""
    asked = [(c, RNG.integers(1, 30, n).tolist()) for c in CONTEXTS for n in (1, 4, 9)]
    return [*asked[2:], asked[5], *asked[:2]]


def expected(model, params, request):
    context, continuation = request
    ids = context + continuation
    padded = np.array([ids + [0] * (24 - len(ids))], np.int32)
    logits = jax.nn.log_softmax(run(model)(params, padded)[0])[len(context) - 1 : len(ids) - 1]
    chosen = np.asarray(logits)[np.arange(len(continuation)), continuation]
    return chosen.sum(), bool((logits.argmax(-1) == np.array(continuation)).all())


@functools.cache
def run(model):
    return jax.jit(model.apply)


def tiny(name="llama2"):
    if name == "llama2":
        config, params, _ = reference(name, llama)
    else:
        config, params, *_ = member(name)
    return Model(config, params, None, name)


def check(model, params, asked, **options):
    for request, score in zip(asked, ContinuationScorer(model, params, **options)(asked)):
        logprob, greedy = expected(model, params, request)
        assert score.logprob == pytest.approx(logprob, abs=1e-4)
        assert (score.greedy, score.tokens) == (greedy, len(request[1]))


@pytest.mark.parametrize("batch", [64, 3])
def test_a_score_is_that_of_the_whole_text(batch):
    model = tiny()
    asked = requests()
    asked += [(CONTEXTS[2], [token]) for token in range(1, 30)]  # one of them may be the best
    check(model, model.params, asked, batch=batch)


@pytest.mark.parametrize("name", ["bloom", "deepseek_v3", "gemma2", "llama4", "mixtral"])
def test_texts_of_a_tree_have_the_scores_of_each_alone(name):
    model = tiny(name)
    check(model, model.params, requests()[:12])


def test_a_state_takes_in_no_padding():
    model = tiny("rwkv")
    check(model, model.params, requests()[:6])


def test_encoded_params_stay_encoded():
    model = tiny()
    encoded = jm.encode(model.params, jm.choose(model.params, {".*/kernel": jm.Int(8)}))
    check(model, encoded, requests()[:6])


def test_first_tokens_that_texts_share_are_read_once(monkeypatch):
    scorer, read = ContinuationScorer(tiny()), []
    real = scorer._programs.tree
    monkeypatch.setattr(scorer._programs, "tree", lambda *args: read.append(args) or real(*args))
    scorer([([3, 4, 5], [6, 7]), ([3, 4, 5], [6, 8]), ([3, 4, 5], [9]), ([3, 4, 1], [6, 7])])
    (_, ids, depths, ends, *_) = read[0]
    assert len(read) == 1 and ids[0, :6].tolist() == [3, 4, 1, 6, 5, 6]
    assert depths[0, :6].tolist() == [0, 1, 2, 3, 2, 3]
    assert ends[0, :8].tolist() == [6, 6, 4, 4, 6, 6, 7, 8]


def test_models_of_one_configuration_share_their_programs():
    model = tiny()
    other = dataclasses.replace(model, source="another")
    scorers = [
        ContinuationScorer(x, jax.tree.map(lambda w: w + 1, x.params)) for x in (model, other)
    ]
    scorers[0](requests())
    programs = scorers[0]._programs
    compiled = programs.tree._cache_size()
    scorers[1](requests())
    assert programs is scorers[1]._programs and programs.tree._cache_size() == compiled > 0


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (([], [1]), "request 1 has 0 tokens of context"),
        (([1], []), "and 0 of continuation"),
        (([1] * 99999, [1]), "99999 tokens of context and 1 of continuation, expected at most"),
        (([1], [10**6]), "expected 0 to below"),
    ],
)
def test_what_cannot_be_scored_is_said(request_, message):
    with pytest.raises(ValueError, match=message):
        ContinuationScorer(tiny())([([1], [2]), request_])


def test_an_encoder_and_shapes_are_refused():
    with pytest.raises(ValueError, match="expected at least 1"):
        ContinuationScorer(tiny(), batch=0)
    with pytest.raises(ValueError, match="shapes only"):
        ContinuationScorer(jm.models.load("llama-8b"))
