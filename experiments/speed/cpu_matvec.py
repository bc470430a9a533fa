"""Time of a product on a CPU, encoded against dense f32: x (batch, 2048) times (2048, 8192).

    pip install -e .
    python experiments/speed/cpu_matvec.py [--rounds 25]

The figures go into cpu_matvec.INSTRUCTIONS.jaxVERSION.json, by the instruction set of the compiled
products (`jm.native()`); with JAXMEM_NATIVE=avx2 into cpu_matvec.avx2-chosen..., where the dense
product may have wider vectors. The encodings take turns in one process, in an order that each round
shuffles, on 8 weights that take turns too, so that none stays in a cache. `times_dense` is the
median over rounds of the dense time over the encoding's time in the same round;
`times_dense_by_cpu` is that of CPU times. `times_dense_by_least` is the ratio of the shortest
times, which a busy neighbour changes less: it slows most what reads most. `ceiling` is what
`times_dense` would be if the encoding's bytes came as fast as one thread of NumPy reads the dense
weights, in the same rounds. `error` is the largest difference to the product with `decode`,
divided by the largest value of that product. Products are called 90 times before they are
measured: by then the library has asked for large pages under the codes, as it does in a decoding
loop. The machine must be quiet; to use one core: `taskset -c 0 ...`.
"""

import argparse
import json
import os
import pathlib
import random
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from this_machine import processor

import jaxmem as jm

K, N, COPIES, WARM_UP = 2048, 8192, 8, 90
BATCHES, PROMPT = (1, 8), 512
CODECS = {
    "int8": jm.Int(8),
    "w8a8": jm.Dynamic(jm.Int(8)),
    "int6 g64, zero points": jm.Int(6, group=64, symmetric=False),
    "int5 g64, zero points": jm.Int(5, group=64, symmetric=False),
    "int4": jm.Int(4),
    "int4 g128": jm.Int(4, group=128),
    "int4 g64": jm.Int(4, group=64),
    "int4 g128, zero points": jm.Int(4, group=128, symmetric=False),
    "int4 g64, zero points": jm.Int(4, group=64, symmetric=False),
    "w4a8": jm.Dynamic(jm.Int(4)),
    "w4a8 g128": jm.Dynamic(jm.Int(4, group=128)),
    "int3 g64": jm.Int(3, group=64),
    "nf4 g64": jm.Codebook("nf4", group=64),
    "fp8 e4m3": jm.Float("e4m3"),
    "Q8_0: int8 g32": jm.Int(8, group=32),
    "Q4_0: int4 g32": jm.Int(4, group=32),
    "Q4_1: affine, 4 bits, g32": jm.Affine(4, group=32),
    "2:4, int4": jm.Chain((jm.NM(2, 4), jm.Int(4))),
    "half of blocks, int4": jm.Chain((jm.Blocks(0.5), jm.Int(4))),
}


def warm_up(weights: dict) -> None:
    x, run = jnp.ones((1, K)), jax.jit(jm.lift(jnp.matmul))
    for copies in weights.values():
        for w in copies:
            for _ in range(WARM_UP):
                jax.block_until_ready(run(x, w))


def measure(weights: dict, batch: int, rounds: int) -> list[dict]:
    x = jax.random.normal(jax.random.key(1), (batch, K))
    run = jax.jit(jm.lift(jnp.matmul))
    times = {name: [] for name in weights}
    cpu_times = {name: [] for name in weights}
    read_times = []  # seconds a byte
    order, shuffle = list(weights), random.Random(0).shuffle
    for round_index in range(rounds + 1):
        last = order[-1]
        shuffle(order)  # the first weight after a dense product takes longer
        if order[0] == last:  # its weights are still in the cache
            order.reverse()
        for name in order:
            copies, start, cpu_start = weights[name], time.perf_counter(), time.process_time()
            for w in copies:
                jax.block_until_ready(run(x, w))
            if round_index:  # the first round compiles
                times[name].append((time.perf_counter() - start) / len(copies))
                cpu_times[name].append((time.process_time() - cpu_start) / len(copies))
        start = time.perf_counter()
        for w in weights["dense f32"]:
            np.asarray(w).view(np.uint8).max()
        read_times.append((time.perf_counter() - start) / (len(weights["dense f32"]) * w.nbytes))
    rows = []
    for name, seconds in times.items():
        w = weights[name][0]
        expected = x @ jm.decode(w)
        rows.append(
            {
                "batch": batch,
                "format": name,
                "codec": str(CODECS.get(name)),
                "bytes": jm.nbytes(w),
                "microseconds": round(1e6 * statistics.median(seconds), 1),
                "times_dense": round(
                    statistics.median(d / s for d, s in zip(times["dense f32"], seconds)), 3
                ),
                "ceiling": round(
                    statistics.median(times["dense f32"])
                    / (jm.nbytes(w) * statistics.median(read_times)),
                    2,
                ),
                "gigabytes_per_second_read": round(1e-9 / statistics.median(read_times), 2),
                "least_microseconds": round(1e6 * min(seconds), 1),
                "times_dense_by_least": round(min(times["dense f32"]) / min(seconds), 3),
                "times_dense_by_cpu": round(
                    statistics.median(
                        d / s for d, s in zip(cpu_times["dense f32"], cpu_times[name])
                    ),
                    3,
                ),
                "error": float(jnp.abs(run(x, w) - expected).max() / jnp.abs(expected).max()),
            }
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=25)
    rounds = parser.parse_args().rounds
    dense = [jax.random.normal(jax.random.key(i), (K, N)) for i in range(COPIES)]
    weights = {"dense f32": dense}
    for name, codec in CODECS.items():
        weights[name] = jax.block_until_ready([codec.encode(w) for w in dense])
    warm_up(weights)
    results = {
        "command": f"python experiments/speed/cpu_matvec.py --rounds {rounds}",
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "native": jm.native().instruction_set,
        "machine": processor(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "cores": len(os.sched_getaffinity(0)),
        "seed": 0,
        "shape": [K, N],
        "weights": COPIES,
        "rows": [row for batch in BATCHES for row in measure(weights, batch, rounds)],
        "prompts": measure({name: w[:1] for name, w in weights.items()}, PROMPT, rounds // 5),
    }
    chosen = "-chosen" if os.environ.get("JAXMEM_NATIVE") else ""
    name = f".{jm.native().instruction_set}{chosen}.jax{jax.__version__}.json"
    path = pathlib.Path(__file__).with_suffix(name)
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
