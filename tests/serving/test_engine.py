"""Rows of an engine do not see each other, whatever the pool holds, and no page is lost."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from engines import PAGES, WIDE, answers, model, nbytes, requests

import jaxmem as jm
from jaxmem.serving import Engine, GenerationRequest


@functools.cache
def alone():
    """{id: answer} of each request alone in the engine."""
    engine, found = Engine(model(), nbytes=nbytes(), **WIDE), {}
    for request in requests(12):
        engine.add(request)
        found |= answers(engine)
    return found


@pytest.mark.parametrize("host", [0, 10**9], ids=["again", "swapped"])
def test_a_row_is_the_same_in_a_full_engine_as_alone_in_it(host):
    engine = Engine(model(), nbytes=nbytes(), **WIDE, host=host)
    assert engine.pool.capacity == PAGES
    assert engine.add_sorted(requests(12)) == []
    assert answers(engine) == alone()
    assert engine.usage().free == PAGES
    ends = [a for a in alone().values() if a.finish == "end"]
    assert 0 < len(ends) < 12 and all(a.ids.index(7) == len(a.ids) - 1 for a in ends)


def test_greedy_rows_write_what_generate_writes():
    engine = Engine(model(), nbytes=nbytes(), **WIDE)
    for request in requests(5, seed=3, temperature=0.0, repetition_penalty=1.0):
        engine.add(request)
        ids = jm.models.generate(model(), request.ids, max_new_tokens=request.max_new_tokens).ids
        found = answers(engine)[request.id].ids
        assert found == tuple(ids[0, : len(found)].tolist())


def test_what_is_cancelled_gives_its_pages_back_and_changes_no_other():
    engine = Engine(model(), nbytes=nbytes(), **WIDE)
    engine.add_sorted(requests(12))
    done, gone = {}, {}
    while engine.at_work:
        pieces = engine.step()
        done |= {p.id: p.answer for p in pieces if p.answer}
        running = [p.id for p in pieces if not p.answer]
        waiting = [id for id in alone() if id not in {*done, *gone, *running}]
        for id in {*running[:1], *waiting[-1:]}:
            gone[id] = answer = engine.cancel(id)
            assert answer.finish == "cancelled"
            assert alone()[id].ids[: len(answer.ids)] == answer.ids
    assert 0 < sum(bool(a.ids) for a in gone.values()) < len(gone)
    assert done.keys() | gone.keys() == alone().keys() and not done.keys() & gone.keys()
    assert all(alone()[id] == answer for id, answer in done.items())
    assert engine.usage().allocated == 0
    assert engine.cancel("r1") is None


BAD = {
    "the token ids reach": {"ids": [10**6]},
    "together": {"ids": [1] * 100, "max_new_tokens": 21},
    "no more than the 13 of the pool": {"ids": [1] * 90, "max_new_tokens": 30},
    "half of a surrogate pair": {"prompt": "A\ud800"},
    "has no chat template": {"messages": [{"role": "user", "content": "A"}]},
}


def test_bad_requests_are_refused_by_name_and_good_ones_answered_as_if_alone():
    plain = dataclasses.replace(model(), chat_template=None)
    engine = Engine(plain, nbytes=nbytes(), **WIDE)
    bad = [GenerationRequest(f"bad {i}", **options) for i, options in enumerate(BAD.values())]
    good = requests(12)
    mixed = [*good[:6], *bad, *good[6:], good[0]]
    refused = engine.add_sorted(mixed)
    assert [a.id for a in refused] == [*(b.id for b in bad), "r0"]
    for text, answer in zip([*BAD, "that of a request at work"], refused, strict=True):
        assert text in answer.error
        assert answer.finish == "refused"
    assert answers(engine) == alone()


def test_an_answer_ends_before_a_stop_text():
    request = max(requests(12), key=lambda r: len(alone()[r.id].text))
    whole = alone()[request.id]
    stop = whole.text[2:4]
    engine = Engine(model(), nbytes=nbytes(), **WIDE)
    engine.add(dataclasses.replace(request, stop=("nothing like it", stop)))
    answer = answers(engine)[request.id]
    at = whole.text.index(stop)
    assert (answer.text, answer.finish) == (whole.text[:at], "stop")
    assert answer.ids == whole.ids[: at + 2]  # each token is a letter
    assert (len(answer.logprobs) if request.logprobs else 0) in (0, at + 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": 0}, "rows is 0"),
        ({"chunk": 12}, "chunk is 12, expected a positive multiple of 8, or a divisor"),
        ({"length": 10**9}, "length is 1000000000"),
        ({"nbytes": 1000}, "nbytes is 1000, expected at least"),
    ],
)
def test_an_engine_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Engine(model(), **{"nbytes": nbytes(), **WIDE, **options})


def test_models_that_no_pool_takes_are_refused():
    shapes = jm.models.load("llama-1b")
    with pytest.raises(ValueError, match="shapes only"):
        Engine(shapes, nbytes=10**9)


@pytest.mark.parametrize("bits", [None, 4])
def test_chunks_may_be_parts_of_a_page(bits):
    found = []
    for chunk in (16, 32):
        options = WIDE | {"pages": jm.Pages(bits, size=32), "chunk": chunk}
        engine = Engine(model(), nbytes=2 * nbytes(), **options)
        engine.add_sorted(requests(4, logprobs=True))
        found.append(answers(engine))
    parts, whole = found
    assert {i: a.ids for i, a in parts.items()} == {i: a.ids for i, a in whole.items()}


@pytest.mark.parametrize("host", [0, 10**6])
def test_rows_with_a_window_answer_from_fewer_pages_than_their_texts_take(host):
    options = WIDE | {"rows": 2, "pages": jm.Pages(size=8, window=9, sinks=4)}
    prompts = [np.arange(n, dtype=np.int32) % 31 + 8 for n in (70, 50, 60)]
    asked = [GenerationRequest(f"r{i}", ids=p, max_new_tokens=40) for i, p in enumerate(prompts)]
    found = []
    for pages in (60, 11):  # a text of 110 tokens takes 14 pages
        size = jax.eval_shape(
            functools.partial(options["pages"].empty, model().config, pages, rows=2, most=15)
        )
        engine = Engine(model(), nbytes=jm.nbytes(size), host=host, **options)
        for request in asked:
            engine.add(request)
        found.append({id: answer.ids for id, answer in answers(engine).items()})
        assert engine.usage().allocated == 0
    assert found[0] == found[1] and len(found[0]) == 3


@pytest.mark.parametrize("host", [0, 10**6])
def test_pages_lose_bits_before_a_row_leaves_and_have_them_again_when_all_is_done(host):
    options = WIDE | {"rows": 4, "pages": jm.Pages(8, size=8), "host": host}
    size = jax.eval_shape(
        functools.partial(options["pages"].empty, model().config, 24, rows=4, most=15)
    )
    asked = [
        GenerationRequest(f"r{i}", ids=np.arange(30) % 31 + i, max_new_tokens=70) for i in range(4)
    ]
    left = {}
    for bits in (None, 4):
        engine = Engine(model(), nbytes=jm.nbytes(size), least_bits=bits, **options)
        whole, most, leave = engine.usage().capacity, 0, engine._preempt
        left[bits] = []
        engine._preempt = lambda slot, bits=bits, leave=leave: (
            left[bits].append(slot),
            leave(slot),
        )
        for request in asked:
            engine.add(request)
        for _ in engine:
            most = max(most, engine.usage().capacity)
            assert jm.nbytes(engine.pool) <= jm.nbytes(size)
        assert (most > 1.3 * whole) == (bits == 4)
        assert engine.usage().capacity == whole and engine.pool.options.bits == 8
    assert len(left[4]) < len(left[None])
    with pytest.raises(ValueError, match="least_bits is 4 for Pages"):
        Engine(model(), nbytes=10**6, least_bits=4)


@pytest.mark.parametrize("transfer", ["device_get", "device_put"])
def test_an_engine_answers_on_when_lowering_its_pages_fails_half_way(transfer, monkeypatch):
    options = WIDE | {"rows": 4, "pages": jm.Pages(8, size=8), "least_bits": 4}
    empty = functools.partial(options["pages"].empty, model().config, 24, rows=4, most=15)
    engine = Engine(model(), nbytes=jm.nbytes(jax.eval_shape(empty)), **options)
    for i in range(4):
        engine.add(GenerationRequest(f"r{i}", ids=np.arange(30) + i, max_new_tokens=70))
    calls, right = [], getattr(jax, transfer)

    def fail_once(x):
        calls.append(x)
        if len(calls) == (2 if transfer == "device_get" else 1):
            raise RuntimeError("RESOURCE_EXHAUSTED")
        return right(x)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="EXHAUSTED"):
        patch.setattr(jax, transfer, fail_once)
        engine.step()
    assert engine.pool.options.bits == (8 if transfer == "device_get" else 4)
    assert sorted(answers(engine)) == ["r0", "r1", "r2", "r3"]
    assert engine.usage().allocated == 0


def test_layers_without_a_window_keep_their_pages_while_others_give_them_back():
    some = dataclasses.replace(model().config, local=(True, False), window=9)
    some = dataclasses.replace(model(), config=some)
    prompts = [np.arange(n, dtype=np.int32) % 31 + 8 for n in (70, 50, 60)]
    found, most = [], []
    for pages, capacity in ((jm.Pages(size=8), 60), (jm.Pages(size=8, by_window=True), 24)):
        size = functools.partial(pages.empty, some.config, capacity, rows=2, most=15)
        options = WIDE | {"rows": 2, "pages": pages, "host": 10**6}
        engine = Engine(some, nbytes=jm.nbytes(jax.eval_shape(size)), **options)
        for i, ids in enumerate(prompts):
            engine.add(GenerationRequest(f"r{i}", ids=ids, max_new_tokens=40))
        found.append({id: answer.ids for id, answer in answers(engine).items()})
        assert engine.usage().allocated == 0
        most.append(jm.nbytes(engine.pool))
    assert found[0] == found[1] and len(found[0]) == 3 and most[1] < most[0] / 3
    prefixes = jm.Prefixes(9, size=8, chunk=16)
    with pytest.raises(ValueError, match="by_window is True with prefixes"):
        Engine(some, nbytes=10**6, **options, prefixes=prefixes)
