"""Time of a budget over 2,000 leaves, of encoding 500 shapes, and of 900 levels, on a CPU.

    pip install -e .
    python experiments/speed/many_leaves.py

The figures go into many_leaves.json: seconds by the clock, and seconds that this process computed,
of the first call with all compilation, except `budget_again`. Of the 500 leaves one side is 64 and
the other 64, 72, 80, ...; "wide" ones are summed over the side of 64.
"""

import functools
import json
import os
import pathlib
import tempfile
import time

import jax
import numpy as np

import jaxmem as jm

LEAVES, SHAPES, LEVELS = 2000, 500, 900
CODECS = (
    jm.Int(8),
    jm.Int(4),
    jm.Int(4, group=64, symmetric=False),
    jm.Codebook("nf4", group=64),
    jm.Float("e4m3"),
    jm.Planes(),
    jm.NM(2, 4),
    jm.Bitmask(0.5),
    jm.Csr(0.1),
    jm.Search(jm.Int(4, group=32)),
    jm.KMeans(2),
)


def seconds(run) -> dict[str, float]:
    clock, computed = time.perf_counter(), time.process_time()
    jax.block_until_ready(run())
    clock, computed = time.perf_counter() - clock, time.process_time() - computed
    return {"clock": round(clock, 2), "process": round(computed, 2)}


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

    tall = weights((64 + 8 * i, 64) for i in range(SHAPES))
    wide = weights((64, 64 + 8 * i) for i in range(SHAPES))
    for codec in CODECS:
        for name, params in {"tall": tall, "wide": wide}.items():
            rule = jm.choose(params, {".*": codec})
            encode = functools.partial(jm.encode, params, rule)
            figures[f"encode {SHAPES} {name} shapes, {codec}"] = seconds(encode)
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
