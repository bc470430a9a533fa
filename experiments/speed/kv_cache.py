"""A KV cache in 8, 4 and 2 bits: KL to the dense cache, bytes, memory and speed at 2,048 tokens.

    pip install -e ".[demo]"
    python experiments/speed/kv_cache.py --text wikitext2_valid.txt
    python experiments/speed/kv_cache.py --speed
    python experiments/speed/kv_cache.py --generate 32

The model is smollm2-135m with dense f32 weights. The second half of TEXT measures, windows of 1,024
tokens read through the cache. `--speed` times steps at position 2,047 with all before it in the
cache; it wants a quiet machine. `--generate TOKENS` begins to write 2,016 tokens after 32 random
ones, each cache in a process of its own, and stops after TOKENS, since every step runs the same
program on the same whole cache: how far the resident set grew beyond the loaded model (Linux).
Programs come from a cache on disk, so that no compiler counts. A row that has it is left alone.
"""

import argparse
import contextlib
import ctypes
import dataclasses
import gc
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

import jaxmem as jm
from jaxmem import models
from jaxmem.models import KVCache, downloading
from jaxmem.models.generation import _run

CACHES = {"dense f32": None} | {
    f"{bits} bits{', rotated' if rotate else ''}": KVCache(bits, rotate=rotate)
    for bits in (8, 4, 2)
    for rotate in (False, True)
}
LENGTH, STEPS, ROUNDS = 2048, 8, 5
PROMPT, SEED = 32, 0


def empty(model, how, length):
    if how is None:
        return model.config.cache(1, length)
    return how.empty(model.config, 1, length, jnp.float32)


def quality(model, text, windows):
    ids = np.asarray(model.tokenizer.encode(text, add_special_tokens=False).ids)
    ids = ids[: windows * 1024].reshape(-1, 1024)
    dense = jax.jit(model.apply)
    known = jnp.stack([dense(model.params, w[None])[0] for w in ids])
    look_up = lambda known, w: known["logits"][(known["ids"] == w).all(-1).argmax()][None]
    reference = (look_up, {"ids": jnp.asarray(ids), "logits": known})
    for name, how in CACHES.items():
        run = lambda p, w, how=how: model.apply(p, w, empty(model, how, 1024), 0)[0]
        found = jm.evaluate(run, model.params, ids.reshape(-1), reference=reference)
        found = json.loads(found.to_json())
        yield name, {k: found[k] for k in ("tokens", "perplexity", "kl", "agreement")}


def memory(model):
    for name, how in CACHES.items():
        cache = jax.eval_shape(lambda how=how: empty(model, how, LENGTH))
        ids, at = (jax.ShapeDtypeStruct(s, jnp.int32) for s in ((1, 1), ()))
        m = jm.memory(model.apply, model.params, ids, cache, at, donate_argnums=2)
        size = jm.nbytes(cache)
        dense = jm.nbytes(jax.eval_shape(lambda: model.config.cache(1, LENGTH)))
        yield (
            name,
            {
                "cache_bytes": size,
                "of_dense": round(size / dense, 4),
                "step_temp_bytes": m.temp,
                "step_peak_bytes": m.peak,
                "cache_and_temp_bytes": size + m.temp,
            },
        )


def speed(model):
    """The caches take turns, so that a busy spell meets them all."""
    ids, times = np.zeros((1, 1), np.int32), {name: [] for name in CACHES}
    held = {name: empty(model, how, LENGTH) for name, how in CACHES.items()}
    for turn in range(ROUNDS + 1):
        for name in CACHES:
            for step in range(STEPS):
                start = time.perf_counter()
                at = LENGTH - STEPS + step
                logits, held[name] = _run(model.config, model.params, ids, held[name], at, last=0)
                jax.block_until_ready(logits)
                if turn:
                    times[name].append(time.perf_counter() - start)
    dense = float(np.median(times["dense f32"]))
    for name, seconds in times.items():
        middle = float(np.median(seconds))
        yield (
            name,
            {"tokens_per_second": round(1 / middle, 2), "speed_ratio": round(dense / middle, 3)},
        )


class Enough(Exception):
    """As much was written as was asked for."""


def write_on(name, tokens):
    """Bytes resident before a generation and at its fullest moment, of this process."""
    model = models.load("smollm2-135m")
    model = dataclasses.replace(model, config=dataclasses.replace(model.config, eos=()))
    jax.block_until_ready(model.params)
    prompt = np.random.default_rng(SEED).integers(0, model.config.vocab, PROMPT)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed while loading would be filled unseen
    before, shown = status()["VmRSS"], []
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew

    def stream(text):
        shown.append(text)
        if len(shown) >= tokens:
            raise Enough

    with contextlib.suppress(Enough):
        how = dict(max_new_tokens=LENGTH - PROMPT, cache=CACHES[name])
        models.generate(model, prompt, **how, stream=stream)
    peak = status()["VmHWM"]
    return {"tokens": len(shown), "before_bytes": before, "grown_bytes": peak - before}


def status():
    lines = map(str.split, pathlib.Path("/proc/self/status").read_text().splitlines())
    return {words[0][:-1]: int(words[1]) * 1024 for words in lines if words[0].startswith("Vm")}


def generated(rows, tokens):
    with tempfile.TemporaryDirectory() as folder:
        own = {"JAX_COMPILATION_CACHE_DIR": folder}
        own |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        for name in CACHES:
            if rows[name].get("generation", {}).get("tokens", 0) >= tokens:
                continue
            for count in (3, tokens):  # the first compiles
                command = [sys.executable, __file__, "--one", name, "--generate", str(count)]
                how = dict(stdout=subprocess.PIPE, env=os.environ | own)
                out = subprocess.run(command, check=True, **how)
            yield name, {"generation": json.loads(out.stdout.splitlines()[-1])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=pathlib.Path)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--generate", type=int, metavar="TOKENS")
    parser.add_argument("--one", choices=CACHES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return print(json.dumps(write_on(args.one, args.generate)))
    path = pathlib.Path(__file__).with_suffix(".json")
    model = models.load("smollm2-135m")
    found = {
        "command": " ".join(["python", "experiments/speed/kv_cache.py", *sys.argv[1:]]),
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "model": model.source,
        "gguf_sha256": hashlib.sha256(downloading.fetch("smollm2-135m").read_bytes()).hexdigest(),
        "seed": SEED,
        "windows": args.windows,
        "length": LENGTH,
        "rows": {name: {} for name in CACHES},
    }
    if path.exists():
        old = json.loads(path.read_text())
        found |= {"rows": old["rows"], "command": f"{old['command']}; {found['command']}"}

    def add(rows):
        for name, row in rows:
            found["rows"][name] |= row
            path.write_text(json.dumps(found, indent=1) + "\n")
            print(name, row, flush=True)

    if args.generate:
        add(generated(found["rows"], args.generate))
    if args.speed:
        add(speed(model))
    if args.text:
        text = args.text.read_text(encoding="utf-8")
        add(memory(model))
        add(quality(model, text[len(text) // 2 :], args.windows))


if __name__ == "__main__":
    main()
