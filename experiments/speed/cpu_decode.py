"""Tokens a second of SmolLM2-135M on a CPU, one at a time, encoded against dense f32.

    pip install -e ".[demo]"
    taskset -c 0 python experiments/speed/cpu_decode.py [--rounds 15]

The figures go into cpu_decode.jaxVERSION.json. The encodings take turns in one process, round after
round; `times_dense` is the median over rounds of the dense step's time over the encoded step's time
in the same round. `error_to_decode` compares the logits of the encoded model with those of the same
model on `decode(encoded)`.
"""

import argparse
import functools
import json
import os
import pathlib
import statistics
import time

import jax
import jax.numpy as jnp

import jaxmem as jm

CODECS = {
    "int8": jm.Int(8),
    "int4": jm.Int(4),
    "int4 g64": jm.Int(4, group=64),
    "int3 g64": jm.Int(3, group=64),
}
WEIGHTS = r".*(kernel|embedding)"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    model = jm.models.load("smollm2-135m")
    ids = jnp.asarray([model.tokenizer.encode("The river").ids], jnp.int32)
    uses = jm.uses(model.apply, model.params, ids)

    @functools.partial(jax.jit, donate_argnums=1)
    def step(params, cache, token, position):
        logits, cache = model.apply(params, token, cache, position)
        return jnp.argmax(logits[:, -1:], -1), cache

    trees, errors = {"dense f32": model.params}, {}
    run_model = jax.jit(model.apply)
    for name, codec in CODECS.items():
        trees[name] = jm.encode(model.params, jm.choose(model.params, {WEIGHTS: codec}), uses=uses)
        token = ids[:, :1]  # one row, as in decoding: the CPU's integer product is in use
        lifted, decoded = run_model(trees[name], token), run_model(jm.decode(trees[name]), token)
        errors[name] = float(jnp.abs(lifted - decoded).max() / jnp.abs(decoded).max())

    state = {}
    for name, tree in trees.items():
        cache = model.config.cache(1, 128, jnp.float32)
        state[name] = step(tree, cache, ids[:, :1], 0)  # compiles
    times = {name: [] for name in trees}
    for i in range(rounds):
        for name, tree in trees.items():
            token, cache = state[name]
            start = time.perf_counter()
            state[name] = jax.block_until_ready(step(tree, cache, token, i + 1))
            times[name].append(time.perf_counter() - start)
    dense = times["dense f32"]
    rows = [
        {
            "encoding": name,
            "bytes": jm.nbytes(trees[name]),
            "ms_per_token": 1e3 * statistics.median(t),
            "times_dense": statistics.median(d / x for d, x in zip(dense, t)),
            "error_to_decode": errors.get(name, 0.0),
        }
        for name, t in times.items()
    ]
    results = {
        "command": f"python experiments/speed/cpu_decode.py --rounds {rounds}",
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "cores": len(os.sched_getaffinity(0)),
        "seed": None,
        "model": model.source,
        "rows": rows,
    }
    path = pathlib.Path(__file__).with_suffix(f".jax{jax.__version__}.json")
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
