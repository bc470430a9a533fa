"""An engine answers with latents and recurrent states as it does with keys and values of heads."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from reference_models import member

import jaxmem as jm
from jaxmem.models import Model
from jaxmem.serving import Engine, GenerationRequest

NAMES = ["deepseek_v2", "jamba", "rwkv"]  # latents, both of states and attention, states alone
PAGES, ROWS, LENGTH = jm.Pages(size=8), 3, 48


@functools.cache
def model(name):
    config, params, *_ = member(name)
    return Model(dataclasses.replace(config, eos=(2,)), params, None, name)


def requests():
    rng = np.random.default_rng(0)
    ways = [{}, {"temperature": 1.0, "seed": 3}, {"repetition_penalty": 1.5}]
    sizes = [(rng.integers(3, 30, 3 + 4 * i), 24 - 2 * i) for i in range(6)]
    return [
        GenerationRequest(f"r{i}", ids=ids, max_new_tokens=count, **way)
        for i, ((ids, count), way) in enumerate(zip(sizes, 2 * ways))
    ]


def engine(name, pages, **options):
    config, most = model(name).config, LENGTH // PAGES.size
    pool = jax.eval_shape(lambda: PAGES.empty(config, pages, ROWS, most))
    sizes = {"rows": ROWS, "chunk": 8, "pages": PAGES, "length": LENGTH}
    return Engine(model(name), nbytes=jm.nbytes(pool), **sizes, **options)


def answers(engine):
    return {piece.id: piece.answer for piece in engine if piece.answer is not None}


@functools.cache
def alone(name):
    """{id: answer} of each request alone in the engine."""
    engine_, found = engine(name, 8), {}
    for request in requests():
        engine_.add(request)
        found |= answers(engine_)
    return found


@pytest.mark.parametrize("host", [0, 10**9], ids=["again", "swapped"])
@pytest.mark.parametrize("name", NAMES)
def test_a_row_is_the_same_in_a_full_engine_as_alone_in_it(name, host):
    full = engine(name, 8, host=host)
    assert full.add_sorted(requests()) == []
    assert answers(full) == alone(name)
    assert full.usage().allocated == 0


@pytest.mark.parametrize("name", NAMES)
def test_greedy_rows_write_what_generate_writes(name):
    greedy = [x for x in requests() if x.temperature == 0 and x.repetition_penalty == 1]
    assert len(greedy) == 2
    for x in greedy:
        done = jm.models.generate(model(name), x.ids, max_new_tokens=x.max_new_tokens)
        assert tuple(done.ids[0, : len(alone(name)[x.id].ids)]) == alone(name)[x.id].ids


def test_what_no_page_holds_is_refused_by_name():
    config = model("jamba").config
    of = (model("jamba").params, config.to_dict(), PAGES)
    with pytest.raises(NotImplementedError, match=r"prefixes .* recurrent layers"):
        engine("jamba", 8, prefixes=jm.Prefixes(4, size=8, chunk=8, of=of))
    pool = PAGES.empty(config, 8, ROWS, 4)
    with pytest.raises(NotImplementedError, match="recurrent layers"):
        jm.pages.share(pool, 0, 1, 8)
    for name, kept in (("deepseek_v2", "latents"), ("rwkv", "no keys and values")):
        with pytest.raises(NotImplementedError, match=kept):
            jm.Pages(4, size=8).empty(model(name).config, 8, ROWS, 4)
