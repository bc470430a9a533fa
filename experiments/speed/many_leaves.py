"""Time of a budget over 2,000 leaves, of encoding 500 shapes, and of 900 levels, on a CPU.

    pip install -e .
    python experiments/speed/many_leaves.py

The figures go into many_leaves.json, in seconds of the first call in this process, with all
compilation, except `budget_again`. The 500 leaves have 64 columns and 64, 72, 80, ... rows.
"""

import json
import os
import pathlib
import tempfile
import time

import jax
import numpy as np

import jaxmem as jm

LEAVES, SHAPES, LEVELS = 2000, 500, 900
CODECS = (jm.Int(8), jm.Int(4), jm.Int(4, group=64, symmetric=False))


def seconds(run) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return round(time.perf_counter() - start, 2)


def weights(shapes) -> dict:
    random = np.random.default_rng(0)
    return {f"w{i}": random.standard_normal(shape, np.float32) for i, shape in enumerate(shapes)}


def main() -> None:
    figures = {}
    params = weights([(64, 64)] * LEAVES)
    plan = lambda: jm.budget(params, nbytes=64 * 64 * LEAVES * 5 // 8)
    figures["budget"], figures["budget_again"] = seconds(plan), seconds(plan)
    chosen = plan()
    figures["encode_budget"] = seconds(lambda: jm.encode(params, chosen))

    shapes = weights((64 + 8 * i, 64) for i in range(SHAPES))
    for codec in CODECS:
        rule = jm.choose(shapes, {".*": codec})
        figures[f"encode {SHAPES} shapes, {codec}"] = seconds(lambda: jm.encode(shapes, rule))  # noqa: B023
        print(figures, flush=True)

    deep = {"w": np.ones((32, 32), np.float32)}
    for _ in range(LEVELS):
        deep = {"a": deep}
    with tempfile.TemporaryDirectory() as folder:
        encode = lambda: jm.encode(deep, jm.choose(deep, {".*w": jm.Int(4)}))
        save = lambda: jm.save(f"{folder}/deep.jm", encode())
        figures["encode and save 900 levels"] = seconds(save)
        figures["load 900 levels"] = seconds(lambda: jm.load(f"{folder}/deep.jm"))
    results = {
        "command": "python experiments/speed/many_leaves.py",
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "cores": len(os.sched_getaffinity(0)),
        "seed": 0,
        "seconds": figures,
    }
    path = pathlib.Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
