"""A small model in an engine, requests of all kinds, and their answers."""

import dataclasses
import functools

import jax
import numpy as np
from chat_models import chatting

import jaxmem as jm
from jaxmem.serving import GenerationRequest

PAGES = 13
WIDE = {"rows": 5, "chunk": 16, "pages": jm.Pages(size=8), "length": 120}


@functools.cache
def model():
    m = chatting()
    return dataclasses.replace(m, config=dataclasses.replace(m.config, context=128, eos=(7,)))


def nbytes():
    """The bytes of a pool of `PAGES` pages."""
    empty = lambda: WIDE["pages"].empty(model().config, PAGES, WIDE["rows"], 15)
    return jm.nbytes(jax.eval_shape(empty))


def requests(count, seed=0, **options):
    """Requests of all kinds, with prompts and answers of many lengths."""
    rng = np.random.default_rng(seed)
    ways = [
        {},
        {"temperature": 1.0, "seed": 5},
        {"temperature": 0.7, "top_k": 7, "min_p": 0.01},
        {"repetition_penalty": 1.5, "logprobs": True},
    ]
    lengths = rng.integers(1, (41, 65), (count, 2)).tolist()
    vocab = model().config.vocab
    return [
        GenerationRequest(
            f"r{i}",
            ids=rng.integers(0, vocab, prompt),
            max_new_tokens=answer,
            **{**ways[i % 4], **options},
        )
        for i, (prompt, answer) in enumerate(lengths)
    ]


def answers(engine):
    """{id: answer} of all that is at work; the pieces of each make its answer."""
    found, ids, texts = {}, {}, {}
    for piece in engine:
        ids[piece.id] = ids.get(piece.id, ()) + piece.ids
        texts[piece.id] = texts.get(piece.id, "") + piece.text
        if piece.answer is not None:
            assert piece.id not in found
            found[piece.id] = piece.answer
    assert ids == {id: a.ids for id, a in found.items()}
    assert texts == {id: a.text for id, a in found.items()}
    return found
