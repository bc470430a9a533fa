"""Memory that programs take when they run on a CPU, against `jm.memory`: writes resident.json.

    python experiments/memory/resident.py

Each program runs once in a process of its own. `predicted` is outputs + temp - aliased of
`jm.memory`; `grown` is the growth of the process's peak resident set while the program ran (Linux).
The largest and median error are those of the twelve programs about which `jm.memory` had no
reservations (`notes`). A row that is in the file already is not run again.
"""

import concurrent.futures
import json
import multiprocessing
import pathlib
import statistics

import jax
import jax.numpy as jnp
import optax

import jaxmem as jm
from jaxmem.architectures import llama
from jaxmem.io.atomic import write_whole

KEY = jax.random.key(0)


def normal(*shape, dtype=jnp.float32):
    return jax.random.normal(KEY, shape, dtype)


def product():
    return lambda x, w: x @ w, (normal(8192, 512), normal(512, 8192))


def mlp_gradient():
    loss = lambda w, x: (jax.nn.gelu(x @ w["up"]) @ w["down"]).var()
    w = {"up": normal(1024, 4096), "down": normal(4096, 1024)}
    return jax.grad(loss), (w, normal(8192, 1024))


def stack(policy):
    layer = lambda x, w: (jnp.tanh(x @ w) * x, None)
    run = jm.remat(lambda w, x: jax.lax.scan(layer, x, w)[0], policy)
    return jax.grad(lambda w, x: run(w, x).var()), (normal(16, 1024, 1024) / 32, normal(4096, 1024))


def adam():
    optimizer = optax.adam(1e-3)
    w, slope = {"w": normal(8192, 8192)}, {"w": normal(8192, 8192) + 1}

    def step(w, opt, slope):
        change, opt = optimizer.update(slope, opt, w)
        return optax.apply_updates(w, change), opt

    return jax.jit(step, donate_argnums=1), (w, optimizer.init(w), slope)


def decoded():
    leaf = jm.Int(4, group=64).encode(normal(8192, 8192))
    return lambda leaf: leaf.decode(), (leaf,)


def lifted(codec, rows):
    enc = jm.encode({"kernel": normal(4096, 16384)}, {"kernel": codec})
    return jm.lift(lambda p, x: x @ p["kernel"]), (enc, normal(rows, 4096))


def attention():
    q, k, v = (normal(1, 2048, 16, 64) for _ in range(3))
    return jax.nn.dot_product_attention, (q, k, v)


def convolution():
    options = dict(
        window_strides=(1, 1), padding="SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    run = lambda x, w: jax.lax.conv_general_dilated(x, w, **options)
    return run, (normal(16, 224, 224, 16), normal(3, 3, 16, 64))


def language_model(training):
    config = llama.Config(
        vocab=16384, width=512, ffn=1408, layers=8, heads=8, kv_heads=4, head_dim=64
    )
    net, ids = llama.module(config), jnp.zeros((8, 512), jnp.int32)
    params = jax.jit(net.init)(KEY, ids[:1, :8])["params"]
    apply = lambda p, ids: net.apply({"params": p}, ids)
    loss = lambda p, ids: optax.softmax_cross_entropy_with_integer_labels(apply(p, ids), ids).mean()
    return (jax.grad(loss) if training else apply), (params, ids)


PROGRAMS = {
    "product, 8192 x 512 x 8192": product,
    "gradient of an MLP, 8192 rows": mlp_gradient,
    "gradient of 16 layers": lambda: stack(jm.Remat("none")),
    "gradient of 16 layers, remat full": lambda: stack(jm.Remat("full")),
    "gradient of 16 layers, remat nested": lambda: stack(jm.Remat("nested")),
    "Adam, its state donated, 67 M numbers": adam,
    "int4 g64 decoded, 67 M numbers": decoded,
    "int8 product lifted, 2048 rows": lambda: lifted(jm.Int(8), 2048),
    "int4 product lifted, 2048 rows": lambda: lifted(jm.Int(4), 2048),
    "attention, 2048 tokens": attention,
    "convolution, 16 images": convolution,
    "a small Llama's logits": lambda: language_model(False),
    "gradient of a small Llama": lambda: language_model(True),
}


def run(name: str) -> dict:
    fn, args = PROGRAMS[name]()
    measurement = jm.measured(fn, *args)
    sizes = {"arguments": measurement.memory.arguments, "predicted": measurement.predicted}
    return (
        sizes
        | {"grown": measurement.grown, "error": round(measurement.error, 4)}
        | {"notes": measurement.memory.notes}
    )


def main() -> None:
    path = pathlib.Path(__file__).with_suffix(".json")
    results = {
        "command": "python experiments/memory/resident.py",
        "jax": jax.__version__,
        "backend": "cpu",
        "seed": 0,
        "model": "none: random numbers",
        "rows": json.loads(path.read_text())["rows"] if path.exists() else {},
    }
    spawn = multiprocessing.get_context("spawn")
    for name in PROGRAMS:
        if name in results["rows"]:
            continue
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
            results["rows"][name] = pool.submit(run, name).result()
        print(name, results["rows"][name], flush=True)
        errors = [abs(row["error"]) for row in results["rows"].values() if not row["notes"]]
        results |= {
            "largest_error": max(errors),
            "median_error": round(statistics.median(errors), 4),
        }
        write_whole(path, (json.dumps(results, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
