"""How long a prompt takes whose first 1,024 of 1,088 tokens a cache has: prefill_hits.json.

    python experiments/speed/prefill_hits.py [--rounds 5]

Three prompts in turn, each answered by one token of an engine: all new; its first 1,024 tokens in
pages of the device; or in files, through a new cache that has read nothing yet. The time is that of
a step of the engine, on one core: the CPU time of the process, and the clock. Prompts are read in
chunks of 64 tokens; the model is smollm2-135m in f32. The JSON has the medians, and their ratios to
that of a new prompt, in which other work on the machine is the same. Rounds add to those it has.
"""

import argparse
import hashlib
import json
import pathlib
import statistics
import tempfile
import time

import jax
import numpy as np

import jaxmem as jm
from jaxmem.models import downloading
from jaxmem.serving import Engine, GenerationRequest

JSON = pathlib.Path(__file__).with_suffix(".json")
SHARED, OWN, CHUNK, SEED = 1024, 64, 64, 0


def engine_of(model, path, of):
    prefixes = jm.Prefixes(60, policy="lru", disk="1GB", path=path, size=CHUNK, chunk=CHUNK, of=of)
    sizes = {"rows": 1, "chunk": CHUNK, "length": 2048, "pages": jm.Pages(size=CHUNK)}
    return Engine(model, nbytes=256_000_000, prefixes=prefixes, **sizes), prefixes


def seconds(engine, ids, cached):
    """CPU time and clock of a step that reads a prompt and writes one token."""
    engine.add(GenerationRequest("a", ids=ids, max_new_tokens=1))
    start = time.process_time(), time.perf_counter()
    (piece,) = engine.step()
    assert piece.answer.cached_tokens == cached, piece.answer
    return time.process_time() - start[0], time.perf_counter() - start[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    model = jm.models.load("smollm2-135m", dtype="float32")
    of = "smollm2-135m in float32"  # the files live as long as this program
    result = json.loads(JSON.read_text()) if JSON.exists() else {"rounds": []}
    draw = np.random.default_rng(SEED + len(result["rounds"]))
    new = lambda count: draw.integers(0, model.config.vocab, count)
    shared = new(SHARED)
    with tempfile.TemporaryDirectory() as path:
        engine, _ = engine_of(model, path, of)
        seconds(engine, np.append(shared, new(OWN)), 0)  # compiles
        engine.flush()
        seconds(engine_of(model, path, of)[0], np.append(shared, new(OWN)), SHARED)
        while len(result["rounds"]) < rounds:
            row = {
                "new": seconds(engine, new(SHARED + OWN), 0),
                "device": seconds(engine, np.append(shared, new(OWN)), SHARED),
                "disk": seconds(engine_of(model, path, of)[0], np.append(shared, new(OWN)), SHARED),
            }
            result["rounds"].append(row)
            middle = {
                name: [statistics.median(row[name][i] for row in result["rounds"]) for i in (0, 1)]
                for name in row
            }
            sha = hashlib.sha256(downloading.fetch("smollm2-135m").read_bytes()).hexdigest()
            result |= {
                "jax": jax.__version__,
                "backend": jax.default_backend(),
                "seed": SEED,
                "model_sha256": sha,
                "tokens": {"shared": SHARED, "own": OWN, "chunk": CHUNK},
                "cpu_seconds": {name: x[0] for name, x in middle.items()},
                "seconds": {name: x[1] for name, x in middle.items()},
                "cpu_ratio": {name: x[0] / middle["new"][0] for name, x in middle.items()},
                "ratio": {name: x[1] / middle["new"][1] for name, x in middle.items()},
            }
            JSON.write_text(json.dumps(result, indent=1) + "\n")
            print(row, flush=True)


if __name__ == "__main__":
    main()
