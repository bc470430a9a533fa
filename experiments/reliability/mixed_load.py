"""An engine under a load of all kinds of requests, good and bad, for 30 minutes: mixed_load.json.

    python experiments/reliability/mixed_load.py --only "at once"
    python experiments/reliability/mixed_load.py --only mixed --minutes 30

Each good request is answered alone first, by an engine of its own form. "at once": 200 requests, 20
of them bad, are put into one engine. "mixed": requests of the same kinds come at random times, some
are cancelled, rows leave for want of pages and start again, and once a minute all is answered and
another engine goes on with the files of prefixes. Then each page is free or the cache's, and the
bytes of the process and of live arrays are noted, among them engines of minutes before until Python
collects them. An answer is right if it is the one alone.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import random
import resource
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

import jaxmem as jm
from jaxmem.architectures import llama
from jaxmem.serving import Engine, GenerationRequest

JSON = pathlib.Path(__file__).with_suffix(".json")
SIZES = dict(vocab=64, width=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=8)
CONFIG = llama.Config(**SIZES, context=256, eos=(7,))
PAGES = jm.Pages(size=8)
OPTIONS = {"nbytes": 180_000, "rows": 8, "pages": PAGES, "chunk": 16}
SEED, GOOD, BAD = 0, 180, 20
WAYS = (
    {},
    {"temperature": 1.0, "top_k": 7},
    {"temperature": 0.7, "min_p": 0.02},
    {"repetition_penalty": 1.5, "logprobs": True},
)
WRONG = ({"ids": [64]}, {"ids": [-1]}, {"ids": [1] * 250}, {"prompt": "no tokenizer"})


def small_model():
    ids = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    shapes = jax.eval_shape(llama.module(CONFIG).init, jax.random.key(0), ids)["params"]
    draw = np.random.default_rng(SEED).standard_normal
    params = jax.tree.map(lambda x: jnp.asarray(draw(x.shape, np.float32) * 0.3), shapes)
    return jm.models.Model(CONFIG, params, None, "random weights, seed 0")


def requests():
    """(good requests, of which some begin alike, and bad ones)."""
    draw = np.random.default_rng(SEED)
    starts = [draw.integers(0, 64, 80) for _ in range(5)]
    good = []
    for i in range(GOOD):
        shared = starts[i % 5][: draw.integers(0, 80)]
        ids = np.append(shared, draw.integers(0, 64, draw.integers(1, 40)))
        options = WAYS[i % 4] | {"seed": i, "max_new_tokens": int(draw.integers(1, 80))}
        good.append(GenerationRequest(f"good {i}", ids=ids, **options))
    return good, [GenerationRequest(f"bad {i}", **WRONG[i % len(WRONG)]) for i in range(BAD)]


def said(answer):
    return answer.ids, answer.logprobs, answer.finish


def alone(model, good):
    """{id: what a request's answer is, if nothing else is at work}."""
    engine, found = Engine(model, **OPTIONS), {}
    for request in good:
        engine.add(request)
        found |= {p.id: said(p.answer) for p in engine if p.answer}
    return found


def at_once(model, minutes):
    good, bad = requests()
    right = alone(model, good)
    mixed = random.Random(SEED).sample([*good, *bad], len(good) + len(bad))
    engine = Engine(model, **OPTIONS)
    refused = engine.add_sorted(mixed)
    found = {p.id: said(p.answer) for p in engine if p.answer}
    return {
        "requests": len(mixed),
        "answered": len(found),
        "as if alone": sum(found[id] == right[id] for id in found),
        "refused": sorted({answer.error for answer in refused}),
        "bad ones refused": {a.id for a in refused} == {b.id for b in bad},
        "pages left": engine.usage().allocated,
    }


def mixed(model, minutes):
    good, bad = requests()
    right, draw = alone(model, good), random.Random(SEED)
    counts = dict.fromkeys(("added", "answered", "wrong", "refused", "cancelled", "left"), 0)
    counts |= {"engines": 0, "pages lost": 0, "cached tokens": 0}
    memory, until = [], time.monotonic() + 60 * minutes

    def look(pieces):
        for answer in (piece.answer for piece in pieces if piece.answer):
            counts["answered"] += 1
            counts["cached tokens"] += answer.cached_tokens
            counts["wrong"] += said(answer) != right[answer.id.partition(", ")[2]]

    with tempfile.TemporaryDirectory() as path:
        while time.monotonic() < until:
            limits = {"host": 20_000, "disk": 2_000_000, "path": path}
            of = (model.params, CONFIG.to_dict())
            prefixes = jm.Prefixes(12, size=PAGES.size, chunk=16, of=of, **limits)
            host = 30_000 * (counts["engines"] % 2)  # every other engine swaps rows
            engine = Engine(model, **OPTIONS, prefixes=prefixes, host=host)
            leave = engine._preempt
            engine._preempt = lambda slot, leave=leave: (
                counts.update(left=counts["left"] + 1),
                leave(slot),
            )
            counts["engines"] += 1
            waiting, end = [], min(until, time.monotonic() + 60)
            while time.monotonic() < end:
                for _ in range(draw.randrange(9) if engine.at_work < 40 else 0):
                    request = draw.choice(bad if draw.random() < 0.05 else good)
                    id = f"{counts['added']}, {request.id}"
                    counts["added"] += 1
                    try:
                        engine.add(dataclasses.replace(request, id=id))
                        waiting.append(id)
                    except ValueError:
                        counts["refused"] += 1
                if waiting and draw.random() < 0.4:
                    gone = engine.cancel(waiting.pop(draw.randrange(len(waiting))))
                    counts["cancelled"] += gone is not None
                look(engine.step())
                time.sleep(draw.random() * 0.04)
            look(engine)
            prefixes.flush()
            counts["pages lost"] += engine.usage().allocated - len(prefixes.evict(10**6))
            resident = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
            live = sum(x.nbytes for x in jax.live_arrays())
            memory.append({"resident": resident * resource.getpagesize(), "arrays": live})
            print(memory[-1], counts, flush=True)
    return {"minutes": minutes, **counts, "bytes each minute": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=["at once", "mixed"])
    parser.add_argument("--minutes", type=float, default=30)
    options = parser.parse_args()
    for name, run in {"at once": at_once, "mixed": mixed}.items():
        if options.only in (None, name):
            result = json.loads(JSON.read_text()) if JSON.exists() else {}
            result |= {"jax": jax.__version__, "backend": jax.default_backend(), "seed": SEED}
            result |= {"model": small_model().source, "cores": len(os.sched_getaffinity(0))}
            result[name] = run(small_model(), options.minutes)
            JSON.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
