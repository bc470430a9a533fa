"""Buffers of at least 16 KiB that a token takes on a CPU: decode_allocations.jax*.json.

    python experiments/memory/decode_allocations.py

A small Llama with random weights generates greedily, four rows at a time. The cache is a contiguous
one of the greatest length, or a pool of pages; donated or not; one step a call, or 32. Counts are
of `jm.allocations`, in a process of its own, divided by the steps of a call; compare them between
versions of JAX.
"""

import json
import pathlib

import jax
import jax.numpy as jnp

import jaxmem as jm
from jaxmem.architectures import llama

SIZES = {"vocab": 512, "width": 256, "ffn": 688, "layers": 6, "heads": 4, "kv_heads": 2}
ROWS, LENGTH, STEPS, SEED = 4, 1024, 32, 0
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


def main() -> None:
    ids = jnp.zeros((1, 1), jnp.int32)
    params = jax.jit(llama.module(CONFIG).init)(jax.random.key(SEED), ids)["params"]
    pool = jm.Pages().empty(CONFIG, pages=ROWS * LENGTH // 64, rows=ROWS, most=LENGTH // 64)
    caches = {"pages": (paged_step, pool), "contiguous": (dense_step, CONFIG.cache(ROWS, LENGTH))}
    tokens = jnp.arange(ROWS, dtype=jnp.int32)
    rows = []
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
