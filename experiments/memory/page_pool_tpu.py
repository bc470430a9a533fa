"""A step of generation over a pool of pages, by the compilers of two TPUs: page_pool_tpu.json.

    pip install -e ".[tpu]"
    python experiments/memory/page_pool_tpu.py

The compiler says how many bytes a step holds and moves; nothing is run. A step reads one token for
each of `batch` rows and gives the next one. Rows are half a page short of `tokens` tokens, in pages
of 64; in rows of "pages that fill" they are one token short, so that all rows encode a page, which
each does in one step of 64. `traffic_ratio` is bytes moved ÷ (weights + pages read); unfinished
pages of codes are not in what it is divided by. Models have 4 of their layers: heads of 64
(llama-1b, bf16) and of 128 (llama-8b, weights in 8 bits). `attention alone` scans 8 layers of
attention over a pool: ours, a scatter for the write, a gather of each row's pages, and JAX's own
kernel, of which a layer is sliced from the pool. A row that is in the file already is not compiled
again; a number on the command line is the most rows of one run.
"""

import dataclasses
import itertools
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas.ops.tpu import paged_attention as jax_kernel

import jaxmem as jm
from jaxmem.io.atomic import write_whole
from jaxmem.kv_cache.cached_attention import attend_through
from jaxmem.kv_cache.paged_rows import position_in

DEVICES = ("tpu v5e:1x1", "tpu v6e:1x1")
MODELS = {"llama-1b": 2048, "llama-8b": 1024}  # tokens of a row
BATCHES, BITS, SIZE, LAYERS = (16, 64), (None, 8, 4), 64, 4


def shape(*dims, dtype=jnp.int32):
    return jax.ShapeDtypeStruct(dims, dtype)


def filled(pool, tokens):
    """The pool, whose rows all hold `tokens` tokens, known when it is compiled."""
    length = jnp.full(pool.rows, tokens, jnp.int32)
    return dataclasses.replace(pool, length=length, room=length + 1)


def empty(config, bits, batch, tokens):
    columns = tokens // SIZE
    how = jm.Pages(bits, size=SIZE)
    return jax.eval_shape(lambda: how.empty(config, batch * columns, batch, columns, jnp.bfloat16))


def told(m, read):
    return {
        "temp_bytes": m.temp,
        "traffic": m.traffic,
        "read_bytes": read,
        "traffic_ratio": round(m.traffic / read, 4),
    }


def whole_step(device, name, batch, bits, lacks=SIZE // 2):
    """A step of a model whose rows lack some tokens of `MODELS`, as the compiler sees it."""
    model, tokens = jm.models.load(name), MODELS[name]
    config = dataclasses.replace(model.config, layers=LAYERS)
    first = lambda x: shape(LAYERS, *x.shape[1:], dtype=x.dtype)
    params = model.params | {"layers": jax.tree.map(first, model.params["layers"])}
    model = dataclasses.replace(model, config=config, tensors=params)
    if name == "llama-8b":
        codecs = {r"layers/.*/kernel": jm.Int(8)}
        params = jax.eval_shape(lambda p: jm.encode(p, jm.choose(p, codecs)), params)
    pool = empty(config, bits, batch, tokens)

    def step(params, ids, pool):
        logits, pool = model.apply(params, ids, filled(pool, tokens - lacks))
        return jnp.argmax(logits[:, 0], -1).astype(jnp.int32), pool

    m = jm.memory(step, params, shape(batch, 1), pool, donate_argnums=2, device=device)
    table = 0 if config.tied else jm.nbytes(params["embed"])  # of which `batch` rows are read
    whole = (tokens - lacks) // SIZE + (bits is None)  # of a row; the last one is read, too
    pages = jm.nbytes(pool.stores) // (pool.capacity + 1) * batch * whole
    read = jm.nbytes(params) - table + pages
    return told(m, read)


def attention_alone(device, way, batch, width):
    """8 layers of attention over a pool in bf16: one token of each row is written, all are read."""
    heads, tokens, layers = 8, 1024, 8
    columns = tokens // SIZE
    sizes = dict(vocab=8, width=8, ffn=8, heads=4 * heads, kv_heads=heads, head_dim=width)
    config = jm.models.load("llama-1b").config
    config = dataclasses.replace(config, **sizes, layers=layers, rope_scaling=())
    pool = empty(config, None, batch, tokens)
    if way != "ours":
        pages = (layers, heads, batch * columns, SIZE, width)
        pool = {name: shape(*pages, dtype=jnp.bfloat16) for name in ("k", "v")}
    q = shape(batch, 4 * heads, 1, width, dtype=jnp.bfloat16)
    new = shape(batch, heads, 1, width, dtype=jnp.bfloat16)
    table = shape(batch, columns)

    def ours(pool, table, q, k, v):
        pool = filled(pool, tokens - 1)
        pool = dataclasses.replace(pool, table=table)
        where = position_in(pool, jnp.zeros((batch, 1), jnp.int32), 0, None)

        def layer(carry, i):
            pool, q = carry
            pool, y = attend_through(pool, i, where, q, k, v, tokens, 1.0)
            return (pool, y), None

        return lax.scan(layer, (pool, q), jnp.arange(layers))[0]

    def other(pool, table, q, k, v):
        last, slot = table[:, -1], SIZE - 1

        def put(a, x, i):
            if way == "scatter":
                return a.at[i, :, last, slot].set(x[:, :, 0])
            for row in range(batch):
                start = (i, 0, last[row], slot, 0)
                x_row = x[row].astype(a.dtype)[None, :, None]
                a = lax.dynamic_update_slice(a, x_row, start)
            return a

        def layer(carry, i):
            pool, q = carry
            pool = {"k": put(pool["k"], k, i), "v": put(pool["v"], v, i)}
            pages = [lax.dynamic_index_in_dim(pool[name], i, 0, keepdims=False) for name in "kv"]
            if way == "jax's kernel":
                lengths = jnp.full(batch, tokens, jnp.int32)
                y = jax_kernel.paged_attention(
                    q[:, :, 0], *pages, lengths, table, pages_per_compute_block=4
                )[:, :, None]
            else:
                rows = [
                    pool[name][i, :, table].reshape(batch, columns, heads, SIZE, width)
                    for name in "kv"
                ]
                keys, values = (x.swapaxes(1, 2).reshape(batch, heads, -1, width) for x in rows)
                groups = q.reshape(batch, heads, 4, width)
                scores = jnp.einsum("bkgh,bksh->bkgs", groups, keys)
                shares = jax.nn.softmax(scores.astype(jnp.float32), -1).astype(values.dtype)
                y = jnp.einsum("bkgs,bksh->bkgh", shares, values).reshape(q.shape)
            return (pool, y), None

        return lax.scan(layer, (pool, q), jnp.arange(layers))[0]

    run = ours if way == "ours" else other
    m = jm.memory(run, pool, table, q, new, new, donate_argnums=0, device=device)
    read = 2 * layers * heads * batch * tokens * width * 2
    return told(m, read)


def main() -> None:
    path = pathlib.Path(__file__).with_suffix(".json")
    results = json.loads(path.read_text()) if path.exists() else {"rows": {}}
    results |= {
        "command": "python experiments/memory/page_pool_tpu.py",
        "jax": jax.__version__,
        "backend": "a TPU target, compiled and not run",
        "seed": None,
    }
    ways = ("ours", "scatter", "gather", "jax's kernel")
    peers = [("attention alone", DEVICES[0], way, 16, h) for way in ways for h in (64, 128)]
    steps = [
        ("whole step", device, model, batch, bits)
        for batch, device, bits, model in itertools.product(BATCHES, DEVICES, BITS, MODELS)
    ]
    full = [("pages that fill", DEVICES[0], "llama-8b", 64, bits, 1) for bits in BITS[1:]]
    cases = [*steps[:6], *peers, *steps[6:], *full]
    names = {f"{jax.__version__} " + ", ".join(map(str, case)): case for case in cases}
    new = [name for name in names if name not in results["rows"]]
    for name in new[: int(sys.argv[1]) if sys.argv[1:] else None]:
        case = names[name]
        run = attention_alone if case[0] == "attention alone" else whole_step
        try:
            row = run(*case[1:])
        except (jm.CompileError, ValueError, NotImplementedError) as error:
            row = {"refused": str(error)[:200]}
        results["rows"][name] = row
        print(name, row, flush=True)
        write_whole(path, (json.dumps(results, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
