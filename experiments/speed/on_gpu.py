"""One GPU: predicted against measured memory of six programs, and the decoding of four trees.

    pip install -e . "jax[cuda12]"
    python experiments/speed/on_gpu.py [--layers 16]

The figures go into on_gpu.json. The weights of a Llama of about a billion are random, in bfloat16.
Each row is a process of its own, so that the allocator's peak (`memory_stats`) is of one program;
`predicted` is `jm.memory(..., device="here").peak`, from the compiler, before the program runs. A
row of `decode` has tokens a second of 64 steps after a warm-up, and the bytes of its weights. It
takes below 8 minutes of a GPU of the H100's class: no row begins after 7. Rows that are in the file
are not run again. Where there is no GPU the script says so, and writes nothing.
"""

import argparse
import functools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

OUT = pathlib.Path(__file__).with_suffix(".json")
PROGRAMS = ("forward", "forward int8", "loss", "gradient", "adam step", "adam step, remat")
CODECS = ("dense", "int8", "int4", "int4 g64")
ROWS = [f"memory: {name}" for name in PROGRAMS] + [f"decode: {name}" for name in CODECS]
TOKENS, CACHE, STEPS = 1024, 512, 64
MOST_SECONDS, ROW_SECONDS = 420, 120


def model_of(layers: int):
    """(the configuration, random params on the device)."""
    import jax
    import jax.numpy as jnp

    from jaxmem.architectures import llama

    sizes = dict(vocab=32_768, width=2048, ffn=8192, heads=32, kv_heads=8, head_dim=64)
    config = llama.Config(**sizes, layers=layers)
    init = lambda key: llama.module(config).init(key, jnp.zeros((1, 1), jnp.int32))["params"]
    shapes = jax.eval_shape(init, jax.random.key(0))
    leaves, tree = jax.tree.flatten(shapes)
    draw = jax.jit(
        lambda key, shape: jax.random.normal(key, shape, jnp.bfloat16) * 0.02, static_argnums=1
    )
    keys = jax.random.split(jax.random.key(0), len(leaves))
    params = tree.unflatten([draw(key, x.shape) for key, x in zip(keys, leaves)])
    return config, params


def codec_of(name: str):
    import jaxmem as jm

    return {"int8": jm.Int(8), "int4": jm.Int(4), "int4 g64": jm.Int(4, group=64)}[name]


def encoded(params, name: str):
    import jaxmem as jm

    return jm.encode(params, jm.choose(params, {".*(kernel|embedding)": codec_of(name)}))


def program(name: str, config, params):
    """(the function, its arguments, which of them are donated)."""
    import jax
    import jax.numpy as jnp
    import optax

    import jaxmem as jm
    from jaxmem.architectures import llama

    ids = jnp.zeros((1, TOKENS), jnp.int32)
    apply = lambda p, ids: llama.module(config).apply({"params": p}, ids)
    if name.startswith("forward"):
        params = encoded(params, "int8") if name.endswith("int8") else params
        return jm.lift(apply), (params, ids), ()
    run = jax.checkpoint(apply) if name.endswith("remat") else apply

    def loss(p, ids):
        logits = run(p, ids)[:, :-1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:]).mean()

    if name == "loss":
        return loss, (params, ids), ()
    if name == "gradient":
        return jax.value_and_grad(loss), (params, ids), ()
    adam = optax.adam(1e-4)

    def step(p, state, ids):
        value, grads = jax.value_and_grad(loss)(p, ids)
        updates, state = adam.update(grads, state, p)
        return optax.apply_updates(p, updates), state, value

    return step, (params, adam.init(params), ids), (0, 1)


def memory_row(name: str, layers: int) -> dict:
    import jax

    import jaxmem as jm

    fn, args, donated = program(name, *model_of(layers))
    predicted = jm.memory(fn, *args, device="here", donate_argnums=donated).peak
    jax.block_until_ready(jax.jit(fn, donate_argnums=donated)(*args))
    measured = jax.local_devices()[0].memory_stats()["peak_bytes_in_use"]
    return {"predicted": predicted, "measured": measured, "ratio": round(predicted / measured, 4)}


def decode_row(name: str, layers: int) -> dict:
    import jax
    import jax.numpy as jnp

    import jaxmem as jm
    from jaxmem.architectures import llama

    config, params = model_of(layers)
    params = params if name == "dense" else encoded(params, name)
    apply = lambda p, *args: llama.module(config).apply({"params": p}, *args)

    @functools.partial(jax.jit, donate_argnums=1)
    def step(params, cache, token, position):
        logits, cache = jm.lift(apply)(params, token, cache, position)
        return jnp.argmax(logits[:, -1:], -1).astype(jnp.int32), cache

    token, cache, times = jnp.zeros((1, 1), jnp.int32), config.cache(1, CACHE, jnp.bfloat16), []
    for position in range(STEPS + 4):
        start = time.perf_counter()
        token, cache = jax.block_until_ready(step(params, cache, token, position))
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times[4:])
    stats = jax.local_devices()[0].memory_stats()
    row = {"bytes": jm.nbytes(params), "tokens_per_second": round(1 / seconds, 1)}
    return row | {"peak": stats["peak_bytes_in_use"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        kind, name = args.row.split(": ")
        print(json.dumps((memory_row if kind == "memory" else decode_row)(name, args.layers)))
        return
    ask = "import jax; d = jax.devices()[0]; print(d.platform, d.device_kind, jax.__version__)"
    told = subprocess.run([sys.executable, "-c", ask], check=True, capture_output=True, text=True)
    platform, *kind, version = told.stdout.split()
    if platform not in ("gpu", "cuda", "rocm"):
        raise SystemExit(f"there is no GPU here: JAX's first device is a {platform}")
    found = json.loads(OUT.read_text()) if OUT.exists() else {}
    found |= {"jax": version, "backend": "gpu", "device": " ".join(kind), "seed": 0}
    found |= {"command": "python experiments/speed/on_gpu.py", "layers": args.layers}
    rows, start = found.setdefault("rows", {}), time.perf_counter()
    for name in ROWS:
        if name in rows or time.perf_counter() - start > MOST_SECONDS - ROW_SECONDS / 4:
            continue
        command = [sys.executable, __file__, "--row", name, "--layers", str(args.layers)]
        environ = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
        if done.returncode:
            rows[name] = {"error": done.stderr.strip().splitlines()[-1][:200]}
        else:
            rows[name] = json.loads(done.stdout.splitlines()[-1])
        print(name, rows[name], flush=True)
        OUT.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
