"""Buffers of 16 KiB or more that a token takes on a CPU, and its time: decode_allocations.*.json.

    python experiments/memory/decode_allocations.py

A small Llama with random weights generates greedily, four rows at a time, each of which holds 512
tokens already, in a contiguous cache of the greatest length, 1,024, or in a pool of pages; donated
or not; one step a call, or 32. Counts are of `jm.allocations`, in a process of its own, divided by
the steps of a call; compare them between versions of JAX. Rows "eager" are `jax.disable_jit()` with
the contiguous cache. CPU seconds are medians of calls that take turns; the tokens of all rows count
as one. All is done twice: with the library of `jm.native()`, and by XLA alone (JAXMEM_NATIVE=0).
"""

import ctypes
import dataclasses
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
ROWS, LENGTH, FILLED, STEPS, SEED, LEAST = 4, 1024, 512, 32, 0, 16 * 1024
CONFIG = llama.Config(**SIZES, head_dim=64)
HOW = ((False, 1), (True, 1), (True, STEPS))  # donated, steps a call
WAYS = [(cache, *how) for cache in ("contiguous", "pages") for how in HOW]
TOKENS = jnp.arange(ROWS, dtype=jnp.int32)
COMPARED = ("buffers_a_token", "bytes_a_token", "cpu_seconds_a_token")
KEYS = ("cache", "donated", "steps", *COMPARED, "all_allocations_a_token", "cache_in_place")


def paged_step(params, pool, tokens):
    pool, _ = jm.pages.alloc(pool, jnp.ones(ROWS, jnp.int32))
    logits, pool = llama.module(CONFIG).apply({"params": params}, tokens[:, None], pool)
    return pool, jnp.argmax(logits[:, 0], -1).astype(jnp.int32)


def dense_step(params, state, tokens):
    (cache, position), model = state, llama.module(CONFIG)
    logits, cache = model.apply({"params": params}, tokens[:, None], cache, position)
    return (cache, position + 1), jnp.argmax(logits[:, 0], -1).astype(jnp.int32)


def parts():
    """(params, {name: (step, cache)}); each row of a cache holds `FILLED` tokens."""
    params = jax.jit(llama.module(CONFIG).init)(jax.random.key(SEED), TOKENS[None])["params"]
    pool = jm.Pages().empty(CONFIG, pages=ROWS * LENGTH // 64, rows=ROWS, most=LENGTH // 64)
    pool, _ = jm.pages.alloc(pool, jnp.full(ROWS, FILLED))
    pool = dataclasses.replace(pool, length=jnp.copy(pool.room))  # as if the tokens had been read
    dense = CONFIG.cache(ROWS, LENGTH), jnp.int32(FILLED)
    return params, {"pages": (paged_step, pool), "contiguous": (dense_step, dense)}


def repeated(step, steps: int):
    """`step`, so many times in one program."""

    def run(params, cache, tokens):
        body = lambda _, carry: step(params, *carry)
        return jax.lax.fori_loop(0, steps, body, (cache, tokens))

    return step if steps == 1 else run


def cpu_seconds(params, caches) -> list[float]:
    """CPU seconds of a step in each way: medians of calls that take turns; the first compiles."""
    runs = [jax.jit(repeated(caches[c][0], n), donate_argnums=(1,) * d) for c, d, n in WAYS]
    times = [[] for _ in WAYS]
    for _ in range(17):
        for run, (name, _, steps), found in zip(runs, WAYS, times):
            cache = jax.block_until_ready(jax.tree.map(jnp.copy, caches[name][1]))
            start = time.process_time()
            jax.block_until_ready(run(params, cache, TOKENS))
            found.append((time.process_time() - start) / steps)
    return [statistics.median(found[1:]) for found in times]


def eager(params, caches) -> list[dict]:
    """Counts and CPU seconds of a step without jit; the counter is preloaded."""
    counter, out, counts = ctypes.CDLL(None), (ctypes.c_long * 3)(), []
    counter.jaxmem_count.argtypes = [ctypes.c_int, ctypes.c_size_t]
    (_, cache), tokens = caches["contiguous"], TOKENS
    with jax.disable_jit():
        for _ in range(6):
            start = time.process_time()
            counter.jaxmem_count(1, LEAST)
            cache, tokens = jax.block_until_ready(dense_step(params, cache, tokens))
            counter.jaxmem_count(0, 0)
            seconds = time.process_time() - start
            counter.jaxmem_counted(out)
            counts.append((*out, seconds))
    every, *large, seconds = map(statistics.median, zip(*counts[2:]))
    return [dict(zip(KEYS, ("contiguous, eager", False, 1, *large, seconds, every, None)))]


def jitted(params, caches) -> list[dict]:
    """Counts and CPU seconds of a step in a program, for each way."""
    rows = []
    for (name, donated, steps), seconds in zip(WAYS, cpu_seconds(params, caches)):
        fn, options = repeated(caches[name][0], steps), {"donate_argnums": (1,) * donated}
        taken = jm.allocations(fn, params, caches[name][1], TOKENS, calls=4, **options)
        arrays = [flag for key, flag in taken.in_place.items() if "stores" in key or "'k'" in key]
        in_place = all(arrays) if arrays else None
        buffers, nbytes, every = (n / steps for n in (taken.buffers, taken.nbytes, taken.every))
        row = name, donated, steps, buffers, nbytes, seconds, every, in_place
        rows.append(dict(zip(KEYS, row)))
    return rows


def less(rows: list[dict]) -> dict:
    """What 32 steps over pages take less than each other way: shares of 1."""
    key = lambda row: f"{row['cache']}, donated {row['donated']}, {row['steps']} a call"
    share = lambda row: {name: round(1 - rows[-1][name] / row[name], 3) for name in COMPARED}
    return {key(row): share(row) for row in rows[:-1]}


def main() -> None:
    params, caches = parts()
    if sys.argv[1:]:
        return print(json.dumps({"eager": eager, "jitted": jitted}[sys.argv[1]](params, caches)))
    results = {
        "command": "python experiments/memory/decode_allocations.py",
        "jax": jax.__version__,
        "backend": "cpu",
        "seed": SEED,
        "sizes": SIZES | {"rows": ROWS, "length": LENGTH, "filled": FILLED},
        "cache_bytes": {name: jm.nbytes(cache) for name, (_, cache) in caches.items()},
    }
    modes = {"eager": {"LD_PRELOAD": str(counter_library())}, "jitted": {}}
    for name, setting in (("native", "1"), ("xla", "0")):
        rows = []
        for mode, more in modes.items():
            env = os.environ | more | {"JAXMEM_NATIVE": setting}
            said = subprocess.check_output([sys.executable, __file__, mode], env=env, text=True)
            rows += json.loads(said.splitlines()[-1])
        results[name] = {"rows": rows, "pages, 32 steps a call, take less": less(rows)}
        print(name, json.dumps(results[name]), flush=True)
    path = pathlib.Path(__file__).with_suffix(f".jax{jax.__version__}.json")
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
