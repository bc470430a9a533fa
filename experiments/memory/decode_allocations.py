"""Buffers of at least 16 KiB that a token takes on a CPU: decode_allocations.jax*.json.

    python experiments/memory/decode_allocations.py

A small Llama with random weights generates greedily, four rows at a time. The cache is a contiguous
one of the greatest length, or a pool of pages; donated or not; one step a call, or 32. Counts are
of `jm.allocations`, in a process of its own, divided by the steps of a call; compare them between
versions of JAX. The row "eager" is `jax.disable_jit()` with the contiguous cache, counted in the
same way. CPU seconds of a token are medians of this process, the tokens of all rows counted as one.
"""

import ctypes
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp

import jaxmem as jm
from jaxmem.architectures import llama
from jaxmem.compiler.buffer_allocations import counter_library

SIZES = {"vocab": 512, "width": 256, "ffn": 688, "layers": 6, "heads": 4, "kv_heads": 2}
ROWS, LENGTH, STEPS, SEED, LEAST = 4, 1024, 32, 0, 16 * 1024
CONFIG = llama.Config(**SIZES, head_dim=64)


def paged_step(params, pool, tokens):
    pool, _ = jm.pages.alloc(pool, jnp.ones(ROWS, jnp.int32))
    logits, pool = llama.module(CONFIG).apply({"params": params}, tokens[:, None], pool)
    return pool, jnp.argmax(logits[:, 0], -1).astype(jnp.int32)


def dense_step(params, cache, tokens):
    logits, cache = llama.module(CONFIG).apply({"params": params}, tokens[:, None], cache)
    return cache, jnp.argmax(logits[:, 0], -1).astype(jnp.int32)


def repeated(step, steps: int):
    """`step`, so many times in one program."""
    if steps == 1:
        return step

    def run(params, cache, tokens):
        body = lambda _, carry: step(params, *carry)
        return jax.lax.fori_loop(0, steps, body, (cache, tokens))

    return run


def cpu_seconds(step, params, cache, tokens, donated: bool, steps: int) -> float:
    """CPU seconds of a step: the median of some calls, of which the first compiles."""
    run = jax.jit(step, donate_argnums=(1,) if donated else ())
    cache, times = jax.tree.map(jnp.copy, cache), []
    for _ in range(max(4, 33 // steps)):
        start = time.process_time()
        cache, tokens = jax.block_until_ready(run(params, cache, tokens))
        times.append((time.process_time() - start) / steps)
    return statistics.median(times[1:])


def eager(params, cache, tokens) -> dict:
    """Counts and CPU seconds of a step without jit; the counter is preloaded."""
    counter, out, counts, times = ctypes.CDLL(None), (ctypes.c_long * 3)(), [], []
    counter.jaxmem_count.argtypes = [ctypes.c_int, ctypes.c_size_t]
    with jax.disable_jit():
        for _ in range(6):
            start = time.process_time()
            counter.jaxmem_count(1, LEAST)
            cache, tokens = jax.block_until_ready(dense_step(params, cache, tokens))
            counter.jaxmem_count(0, 0)
            times.append(time.process_time() - start)
            counter.jaxmem_counted(out)
            counts.append(list(out))
    every, buffers, nbytes = map(statistics.median, zip(*counts[2:]))
    row = {"cache": "contiguous, eager", "donated": False, "steps": 1, "buffers_a_token": buffers}
    row |= {"bytes_a_token": nbytes, "all_allocations_a_token": every, "cache_in_place": None}
    return row | {"cpu_seconds_a_token": statistics.median(times[2:])}


def main() -> None:
    ids = jnp.zeros((1, 1), jnp.int32)
    params = jax.jit(llama.module(CONFIG).init)(jax.random.key(SEED), ids)["params"]
    pool = jm.Pages().empty(CONFIG, pages=ROWS * LENGTH // 64, rows=ROWS, most=LENGTH // 64)
    caches = {"pages": (paged_step, pool), "contiguous": (dense_step, CONFIG.cache(ROWS, LENGTH))}
    tokens = jnp.arange(ROWS, dtype=jnp.int32)
    if sys.argv[1:] == ["eager"]:
        print(json.dumps(eager(params, caches["contiguous"][1], tokens)))
        return
    preloaded = os.environ | {"LD_PRELOAD": str(counter_library())}
    run = [sys.executable, __file__, "eager"]
    done = subprocess.run(run, env=preloaded, check=True, capture_output=True, text=True)
    rows = [json.loads(done.stdout.splitlines()[-1])]
    print(rows[0], flush=True)
    for name, (step, cache) in caches.items():
        for donated, steps in ((False, 1), (True, 1), (True, STEPS)):
            fn = repeated(step, steps)
            taken = jm.allocations(
                fn, params, cache, tokens, donate_argnums=(1,) if donated else (), calls=4
            )
            row = {"cache": name, "donated": donated, "steps": steps}
            row |= {"buffers_a_token": taken.buffers / steps, "bytes_a_token": taken.nbytes / steps}
            row |= {"all_allocations_a_token": taken.every / steps}
            arrays = [key for key, x in taken.in_place.items() if "stores" in key or "'k'" in key]
            row |= {
                "cache_in_place": all(taken.in_place[key] for key in arrays) if arrays else None
            }
            row |= {"cpu_seconds_a_token": cpu_seconds(fn, params, cache, tokens, donated, steps)}
            rows.append(row)
            print(row, flush=True)
    results = {
        "command": "python experiments/memory/decode_allocations.py",
        "jax": jax.__version__,
        "backend": "cpu",
        "seed": SEED,
        "sizes": SIZES | {"rows": ROWS, "length": LENGTH},
        "cache_bytes": {name: jm.nbytes(cache) for name, (_, cache) in caches.items()},
        "rows": rows,
    }
    path = pathlib.Path(__file__).with_suffix(f".jax{jax.__version__}.json")
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
