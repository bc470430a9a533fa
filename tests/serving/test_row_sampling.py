"""Each row chooses by its own request, and no other row changes a bit of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmem.models.sampling import Sampling, pick
from jaxmem.serving.generation_request import GenerationRequest
from jaxmem.serving.row_sampling import RowChoices, next_tokens

VOCAB = 50
OPTIONS = [
    {},
    {"temperature": 0.8, "seed": 3},
    {"temperature": 1.5, "top_k": 5, "seed": 4},
    {"temperature": 1.0, "top_p": 0.6},
    {"temperature": 2.0, "min_p": 0.3, "seed": 2},
    {"temperature": 1.2, "top_k": 20, "top_p": 0.7, "min_p": 0.05, "seed": 8},
    {"temperature": 1.0, "top_k": 10**9},
]
sample = jax.jit(next_tokens)


def rows(options):
    """The choices of requests with these options."""
    return RowChoices.of([GenerationRequest("a", "b", **o) for o in options])


def inputs(n, seed=0):
    """(logits, step, seen) of n rows."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (n, VOCAB)).astype(np.float32)
    return logits, rng.integers(0, 9, n).astype(np.int32), rng.random((n, VOCAB)) < 0.3


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_row_draws_what_generate_draws_for_one_prompt(options):
    logits, step, seen = inputs(len(OPTIONS))
    tokens = sample(logits, rows([options] * len(OPTIONS)), step, seen)[0]
    o = {"seed": 0, **options}
    key, sampling = jax.random.key(o.pop("seed")), Sampling(**o)
    alone = [int(pick(x[None], key, n, sampling)[0]) for x, n in zip(logits, step)]
    assert tokens.tolist() == alone


def test_no_row_changes_another():
    options = [*OPTIONS, {"repetition_penalty": 1.7, "logprobs": True}]
    logits, step, seen = inputs(len(options), seed=1)
    together = sample(logits, rows(options), step, seen)
    for i, o in enumerate(options):
        others = inputs(len(options), seed=2)
        for mine, other in zip((logits, step, seen), others, strict=True):
            other[i] = mine[i]
        own = rows([o if j == i else {} for j in range(len(options))])
        alone = sample(others[0], own, *others[1:])
        assert [np.asarray(x[i]).tobytes() for x in alone] == [
            np.asarray(x[i]).tobytes() for x in together
        ]


def test_a_penalty_makes_tokens_that_were_there_less_probable():
    logits, step, seen = inputs(4)
    penalty = np.float32(1.8)
    tokens, logprobs = sample(
        logits, rows([{"repetition_penalty": 1.8, "logprobs": True}] * 4), step, seen
    )
    wanted = np.where(seen, np.where(logits > 0, logits / penalty, logits * penalty), logits)
    assert tokens.tolist() == wanted.argmax(-1).tolist() != logits.argmax(-1).tolist()
    raw = jax.nn.log_softmax(jnp.asarray(logits), axis=-1)  # log-probabilities are the model's
    np.testing.assert_allclose(logprobs, raw[jnp.arange(4), tokens], rtol=1e-6)
