"""How many requests 256 MB of keys and values hold: pages against a cache of the longest length.

    pip install -e ".[demo]"
    python experiments/memory/engine_load.py --traces FOLDER [--only NAME] [--requests 96]

The figures go into engine_load.json; a row that is there is left alone, unless what it was measured
with is another. The requests are the first of the Azure conversation trace of 2023 (azure_conv.csv,
CC BY 4.0), their lengths divided by 8, with random prompts; the model is smollm2-135m in f32, and
end tokens are switched off, so that each answer is as long as the trace says. The cache of the
longest length is the same engine with pages of 2,048 tokens: each request has one of them, whatever
its length. Three pages come on top of its bytes, since such a cache needs none of them: that of no
one, and two that an engine keeps free for rows that grow. Pages of 4 bits have 32 tokens: of each
row the unfinished page is in floats. `rows_held` is the mean over steps in which requests wait.
Seconds are of the whole load, after a load of two requests that compiles the programs; other work
on the machine changes them, and CPU seconds less.
"""

import argparse
import csv
import dataclasses
import hashlib
import json
import os
import pathlib
import platform
import time

import jax
import numpy as np

import jaxmem as jm
from jaxmem.models import downloading

NBYTES, LENGTH, CHUNK, SHORTER, SEED = 256_000_000, 2048, 128, 8, 0
KINDS = {  # name: (options of the pages, rows of the engine)
    "longest length": ({"size": LENGTH}, 2),
    "pages": ({}, 40),
    "pages, 4 bits": ({"bits": 4, "size": 32}, 96),
}


def load(path: pathlib.Path, vocab: int, count: int) -> list[jm.serving.GenerationRequest]:
    """Requests with the lengths of the trace."""
    rng = np.random.default_rng(SEED)
    with (path / "azure_conv.csv").open() as file:
        lines = [line for _, line in zip(range(count), csv.DictReader(file))]
    sizes = [(int(x["ContextTokens"]), int(x["GeneratedTokens"])) for x in lines]
    sizes = [(max(prompt // SHORTER, 1), max(answer // SHORTER, 1)) for prompt, answer in sizes]
    return [
        jm.serving.GenerationRequest(f"{i}", ids=rng.integers(0, vocab, n), max_new_tokens=answer)
        for i, (n, answer) in enumerate(sizes)
    ]


def measured(model: jm.models.Model, requests: list, pages: jm.Pages, rows: int) -> dict:
    """What an engine holds, and how fast it answers."""
    sizes = {"rows": rows, "length": LENGTH, "chunk": CHUNK}
    nobody = jax.eval_shape(lambda: pages.empty(model.config, 1, 1, 1))  # and a page of a row
    nbytes = NBYTES + (3 * jm.nbytes(nobody.stores) // 2 if pages.size == LENGTH else 0)
    engine = jm.serving.Engine(model, nbytes=nbytes, pages=pages, **sizes)
    for request in requests[:2]:
        engine.add(request)
    list(engine)
    refused = engine.add_sorted(requests)
    held, full, tokens, used = [], [], 0, []
    start, cpu = time.perf_counter(), time.process_time()
    while engine.at_work:
        pieces = engine.step()
        tokens += sum(len(piece.ids) for piece in pieces)
        # rows that this step answered were held in it
        (full if engine.at_work > engine.generating else held).append(len(pieces))
        used.append(engine.usage().utilisation)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {
        "pages": engine.pool.capacity,
        "pool_bytes": jm.nbytes(engine.pool),
        "rows_held": round(float(np.mean(full or held)), 2),
        "most_rows": max(full + held),
        "steps": len(full) + len(held),
        "tokens": tokens,
        "refused": len(refused),
        "utilisation": round(float(np.mean(used)), 4),
        "seconds": round(seconds, 2),
        "tokens_a_second": round(tokens / seconds, 3),
        "cpu_seconds": round(cpu, 2),
        "tokens_a_cpu_second": round(tokens / cpu, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--traces", type=pathlib.Path, required=True)
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument("--requests", type=int, default=96)
    arguments = parser.parse_args()
    model = jm.models.load("smollm2-135m", dtype="float32")
    model = dataclasses.replace(model, config=dataclasses.replace(model.config, eos=()))
    requests = load(arguments.traces, model.config.vocab, arguments.requests)
    gguf = downloading.fetch("smollm2-135m")
    setting = {
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "machine": platform.machine(),
        "native": jm.native().instruction_set,
        "cores": len(os.sched_getaffinity(0)),
        "seed": SEED,
        "requests": arguments.requests,
        "nbytes": NBYTES,
        "model_sha256": hashlib.sha256(gguf.read_bytes()).hexdigest(),
    }
    out = pathlib.Path(__file__).with_suffix(".json")
    found = json.loads(out.read_text()) if out.exists() else {}
    if {name: found.get(name) for name in setting} != setting:
        found = {"rows": {}, **setting}
    for name, (options, rows) in KINDS.items():
        if name in found["rows"] or arguments.only not in (None, name):
            continue
        found["rows"][name] = measured(model, requests, jm.Pages(**options), rows)
        print(name, found["rows"][name], flush=True)
        out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
