"""Prefixes that an engine keeps: warm answers are the cold ones, and nothing stays pinned."""

import dataclasses
import functools

import numpy as np
import pytest
from engines import WIDE, answers, model, nbytes

import jaxmem as jm
from jaxmem.serving import Engine, GenerationRequest


def alike(name):
    """Requests whose prompts begin alike, of which some are the same."""
    rng = np.random.default_rng(1)
    starts = [rng.integers(0, 40, 36) for _ in range(2)]
    prompts = [np.append(starts[i % 2][: 20 + i], rng.integers(0, 40, 3 + i)) for i in range(6)]
    prompts = [*prompts, *prompts[:2]]
    return [GenerationRequest(f"{name}{i}", ids=p, max_new_tokens=9) for i, p in enumerate(prompts)]


@functools.cache
def without():
    """The ids of each answer of an engine that reads every prompt whole."""
    engine = Engine(model(), nbytes=nbytes(), **WIDE)
    engine.add_sorted(alike("a"))
    return {id[1:]: answer.ids for id, answer in answers(engine).items()}


def cache(pages, **tiers):
    """A cache of prefixes for the pages and the chunks of the engine."""
    of = (model().params, model().config.to_dict())
    return jm.Prefixes(pages, size=8, chunk=WIDE["chunk"], of=of, **tiers)


@pytest.mark.parametrize(("device", "host"), [(80, 0), (3, "1MB")], ids=["device", "host"])
def test_warm_answers_are_the_cold_ones_and_no_page_is_lost(device, host):
    prefixes = cache(device, host=host)
    engine = Engine(model(), nbytes=nbytes(), **WIDE, prefixes=prefixes)
    warm = 0
    for name in "ab":
        assert engine.add_sorted(alike(name)) == []
        found = answers(engine)
        assert {id[1:]: answer.ids for id, answer in found.items()} == without()
        warm += sum(answer.cached_tokens for answer in found.values())
    assert warm > 100
    assert sum(prefixes.stats().hits.values()) >= warm
    use = engine.usage()
    assert use.allocated == len(prefixes.evict(10**6))  # rows have none: all are the cache's


def test_prefixes_that_were_flushed_are_found_by_the_engine_of_a_later_program(tmp_path):
    for hits in (False, True):
        prefixes = cache(80, disk="1MB", path=tmp_path)
        engine = Engine(model(), nbytes=nbytes(), **WIDE, prefixes=prefixes)
        engine.add(alike("a")[5])
        (answer,) = answers(engine).values()
        assert (answer.ids, answer.cached_tokens > 0) == (without()["5"], hits)
        engine.flush()
    assert prefixes.stats().hits["disk"] > 0
    turned = cache(80, disk="1MB", path=tmp_path)  # pages of the same shapes, and other numbers
    wide = {**WIDE, "pages": dataclasses.replace(WIDE["pages"], window=40)}
    engine = Engine(model(), nbytes=nbytes(), **wide, prefixes=turned)
    engine.add(alike("a")[5])
    assert answers(engine)["a5"].cached_tokens == 0


def test_what_is_cancelled_pins_nothing():
    prefixes = cache(80)
    engine = Engine(model(), nbytes=nbytes(), **WIDE, prefixes=prefixes)
    engine.add_sorted(alike("a"))
    engine.step()
    for request in alike("a"):
        engine.cancel(request.id)
    assert engine.at_work == 0
    assert engine.usage().allocated == len(prefixes.evict(10**6)) > 0


def test_a_cache_of_another_engine_is_refused_until_it_holds_nothing():
    prefixes = cache(80)
    one, other = (Engine(model(), nbytes=nbytes(), **WIDE, prefixes=prefixes) for _ in range(2))
    one.add(alike("a")[5])
    answers(one)
    other.add(alike("b")[5])
    with pytest.raises(ValueError, match="pages of another pool"):
        other.step()
    with pytest.raises(ValueError, match="pages of another pool"):
        Engine(model(), nbytes=nbytes(), **WIDE, prefixes=prefixes)
    prefixes.evict(10**6)
    assert answers(other)["b5"].ids == without()["5"]


def test_a_cache_for_other_chunks_is_refused():
    prefixes = jm.Prefixes(80, size=8, chunk=8)
    with pytest.raises(ValueError, match="pages of 8 tokens in chunks of 8, expected 8 and 16"):
        Engine(model(), nbytes=nbytes(), **WIDE, prefixes=prefixes)
