"""The page allocator on real lengths, and under random operations: writes page_utilisation.json.

    python experiments/memory/page_utilisation.py ../shared/data/traces/azure_conv.csv

Part 1: the first 4,000 requests of the Azure conversation trace (context and generated tokens) are
served by `jm.pages` on a CPU, without a model: one request is admitted a step if its pages, one
more and a fiftieth of the pool are free; each row then appends a token; a row that has all of its
tokens is released. Utilisation is live ÷ allocated slots, over all steps. Part 2: 10 times 10^5
random operations, after each of which the accounts are checked in the program. A part that is in
the file already is not run again; a second argument is the most parts of one run.
"""

import csv
import dataclasses
import functools
import hashlib
import json
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxmem as jm
from jaxmem.architectures import llama
from jaxmem.io.atomic import write_whole

CONFIG = llama.Config(vocab=8, width=8, ffn=8, layers=1, heads=1, kv_heads=1, head_dim=8)
REQUESTS, ROWS, PAGES = 4000, 64, 2048
OPERATIONS, BATCH, SEEDS = 10**5, 10**4, 10


def written(pool):
    """The pool, as if each row had read what it has room for."""
    return dataclasses.replace(pool, length=pool.room)


@functools.partial(jax.jit, static_argnames="steps")
def serve(state, context, generated, steps):
    """`steps` steps of a server: its state, and (live tokens, allocated pages, stalls) of each."""

    def step(state, _):
        pool, left, admitted = state
        row = jnp.argmin(left)  # an empty row, if there is one
        prompt = context[jnp.minimum(admitted, len(context) - 1)]
        spare = pool.top - pool.pages_of(prompt) - 1 >= PAGES // 50
        come = (left[row] == 0) & (admitted < len(context)) & spare
        ask = jnp.zeros(ROWS, jnp.int32).at[row].set(jnp.where(come, prompt, 0))
        pool, ok = jm.pages.alloc(pool, ask)
        come &= ok[row]
        tokens = generated[jnp.minimum(admitted, len(context) - 1)]
        left = left.at[row].set(jnp.where(come, tokens, left[row]))
        pool, ok = jm.pages.alloc(pool, left > 0)
        seen = (pool.room.sum(), pool.capacity - pool.top, (~ok).sum())
        left = left - ((left > 0) & ok).astype(jnp.int32)
        pool = jm.pages.release(pool, (left == 0) & (pool.room > 0))
        return (pool, left, admitted + come.astype(jnp.int32)), seen

    return lax.scan(step, state, None, steps)


def trace(path, size):
    """Utilisation of the pool on a trace, in pages of `size` tokens."""
    rows = list(csv.DictReader(path.open()))[:REQUESTS]
    column = lambda name: jnp.array([max(1, int(row[name])) for row in rows], jnp.int32)
    context, generated = column("ContextTokens"), column("GeneratedTokens")
    how = jm.Pages(size=size)
    pool = how.empty(CONFIG, PAGES * 64 // size, ROWS, 2**14 // size)
    state, seen = (pool, jnp.zeros(ROWS, jnp.int32), jnp.int32(0)), []
    while not seen or seen[-1][1, -1]:
        state, out = serve(state, context, generated, steps=1000)
        seen.append(np.stack(jax.device_get(out)))
    live, allocated, stalls = np.concatenate(seen, 1).astype(np.int64)
    assert int(state[2]) == len(rows) and int(state[0].top) == state[0].capacity
    return {
        "requests": len(rows),
        "tokens a page": size,
        "steps": int((allocated > 0).sum()),
        "utilisation": round(float(live.sum() / (allocated.sum() * size)), 5),
        "rows waiting for a page": int(stalls.sum()),
    }


def wrong(pool, held):
    """How many laws do not hold."""
    pages = pool.refs.size
    count = lambda ids: jnp.zeros(pages, jnp.int32).at[ids].add(1, mode="drop")
    entries = count(pool.table.reshape(-1))
    free = count(jnp.where(jnp.arange(pages - 1) < pool.top, pool.stack, pages))
    used = pool.refs > 0
    last = jnp.take_along_axis(pool.table, pool.room[:, None] // pool.size % pool.most, 1)[:, 0]
    laws = (
        pool.top == pool.capacity - used.sum(),  # free = capacity - allocated
        (free == ~used)[1:].all(),  # each page is free once, or used
        (pool.refs == entries + held)[1:].all() & (pool.refs[0] == 0),
        ((pool.table > 0).sum(1) == pool.pages_of(pool.room)).all(),
        (jnp.where(pool.room % pool.size > 0, entries[last], 1) == 1).all(),  # written by one row
    )
    return sum((~law).astype(jnp.int32) for law in laws)


@jax.jit
def operate(pool, held, key):
    """`BATCH` random operations: the pool, what is held, and counts of laws broken and of ok."""
    rows, pages = pool.rows, pool.refs.size
    ok_of = lambda ok: jnp.asarray(ok).sum(dtype=jnp.int32)

    def alloc(pool, held, x):
        pool, ok = jm.pages.alloc(pool, x[:rows] % (2 * pool.size + 9) - 4)
        return pool, held, ok_of(ok)

    def release(pool, held, x):
        return jm.pages.release(pool, x[:2] % (rows + 2) - 1), held, jnp.int32(0)

    def share(pool, held, x):
        pool, ok = jm.pages.share(written(pool), *x[:2] % rows, x[2] % (pool.limit // 2))
        return pool, held, ok_of(ok)

    def hold(pool, held, x):
        row = x[0] % rows
        is_full = jnp.arange(pool.most) < pool.room[row] // pool.size
        ids = jnp.where(is_full, pool.table[row], 0)
        return (
            jm.pages.hold(pool, ids),
            held.at[jnp.where(ids > 0, ids, pages)].add(1),
            jnp.int32(0),
        )

    def evict(pool, held, x):
        ids = jnp.arange(pages)
        ids = jnp.where((held > 0) & (ids % 3 == x[0] % 3), ids, 0)
        less = jnp.zeros_like(held).at[ids].set(1).at[0].set(0)
        return jm.pages.drop(pool, ids), held - less, jnp.int32(0)

    def attach(pool, held, x):
        ids = jnp.argsort(-held)[: pool.most]  # the pages that are held most
        pool, ok = jm.pages.attach(pool, x[0] % rows, ids, x[1] % (pool.limit // 2))
        return pool, held, ok_of(ok)

    def step(state, x):
        pool, held, ok = lax.switch(
            x[0] % 6, (alloc, release, share, hold, evict, attach), *state, x[1:]
        )
        return (pool, held), jnp.stack([wrong(pool, held), ok])

    numbers = jax.random.randint(key, (BATCH, 1 + rows), 0, 2**30)
    (pool, held), counts = lax.scan(step, (pool, held), numbers)
    return pool, held, counts.sum(0)


def operations(seed):
    pool = jm.Pages(size=8).empty(CONFIG, 100, rows=12, most=16)
    held, total = jnp.zeros(101, jnp.int32), np.zeros(2, np.int64)
    for key in jax.random.split(jax.random.key(seed), OPERATIONS // BATCH):
        pool, held, counts = operate(pool, held, key)
        total += np.asarray(counts)
    return {"operations": OPERATIONS, "laws broken": int(total[0]), "granted": int(total[1])}


def main() -> None:
    source = pathlib.Path(sys.argv[1])
    path = pathlib.Path(__file__).with_suffix(".json")
    results = json.loads(path.read_text()) if path.exists() else {}
    results |= {
        "command": "python experiments/memory/page_utilisation.py azure_conv.csv",
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "seeds": SEEDS,
        "trace_sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
    }
    parts = {f"trace, pages of {n}": functools.partial(trace, source, n) for n in (64, 16, 128)}
    parts |= {f"operations, seed {n}": functools.partial(operations, n) for n in range(SEEDS)}
    new = [name for name in parts if name not in results]
    for name in new[: int(sys.argv[2]) if sys.argv[2:] else None]:
        start = time.perf_counter()
        results[name] = parts[name]() | {"seconds": round(time.perf_counter() - start, 1)}
        print(name, results[name], flush=True)
        write_whole(path, (json.dumps(results, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
