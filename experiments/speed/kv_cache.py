"""A KV cache in 8, 4 and 2 bits: KL to the dense cache, bytes, memory and speed at 2,048 tokens.

    pip install -e ".[demo]"
    python experiments/speed/kv_cache.py --text wikitext2_valid.txt
    python experiments/speed/kv_cache.py --speed
    python experiments/speed/kv_cache.py --generate 32

The figures go into kv_cache.json. The model is smollm2-135m with dense f32 weights. The second half
of TEXT measures the quality, in windows of 1,024 tokens that are read through the cache. `--speed`
times steps at position 2,047 with all tokens before it in the cache; the machine must be quiet.

`--generate TOKENS` measures by how much the resident set grows beyond the loaded model (Linux),
each cache in a process of its own. It begins to generate 2,016 tokens after 32 random ones, and
stops after TOKENS, since every step runs the same program on the same whole cache. Programs come
from a cache on disk, so that no compiler's memory counts. A row that has this figure is left alone.
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

CACHES = {"dense f32": None} | {
    f"{bits} bits{', rotated' if rotate else ''}": KVCache(bits, rotate=rotate)
    for bits in (8, 4, 2)
    for rotate in (False, True)
}
CACHE_TOKENS, STEPS_A_ROUND, ROUNDS = 2048, 8, 5
PROMPT_TOKENS, SEED = 32, 0


def empty_cache(model, codec, length):
    if codec is None:
        return model.config.cache(1, length)
    return codec.empty(model.config, 1, length, jnp.float32)


def quality_rows(model, text, windows):
    ids = np.asarray(model.tokenizer.encode(text, add_special_tokens=False).ids)
    ids = ids[: windows * 1024].reshape(-1, 1024)
    dense = jax.jit(model.apply)
    logits = jnp.stack([dense(model.params, w[None])[0] for w in ids])
    look_up = lambda table, w: table["logits"][(table["ids"] == w).all(-1).argmax()][None]
    reference = (look_up, {"ids": jnp.asarray(ids), "logits": logits})
    for name, codec in CACHES.items():
        run = lambda p, w, codec=codec: model.apply(p, w, empty_cache(model, codec, 1024), 0)[0]
        evaluation = jm.evaluate(run, model.params, ids.reshape(-1), reference=reference)
        evaluation = json.loads(evaluation.to_json())
        yield name, {k: evaluation[k] for k in ("tokens", "perplexity", "kl", "agreement")}


def memory_rows(model):
    for name, codec in CACHES.items():
        cache = jax.eval_shape(lambda codec=codec: empty_cache(model, codec, CACHE_TOKENS))
        ids, at = (jax.ShapeDtypeStruct(s, jnp.int32) for s in ((1, 1), ()))
        memory_of_step = jm.memory(model.apply, model.params, ids, cache, at, donate_argnums=2)
        cache_bytes = jm.nbytes(cache)
        dense_bytes = jm.nbytes(jax.eval_shape(lambda: model.config.cache(1, CACHE_TOKENS)))
        yield (
            name,
            {
                "cache_bytes": cache_bytes,
                "of_dense": round(cache_bytes / dense_bytes, 4),
                "step_temp_bytes": memory_of_step.temp,
                "step_peak_bytes": memory_of_step.peak,
                "cache_and_temp_bytes": cache_bytes + memory_of_step.temp,
            },
        )


def speed_rows(model):
    """Rows of speed. The caches take turns, so that a busy spell of the machine slows them all."""
    ids, times = np.zeros((1, 1), np.int32), {name: [] for name in CACHES}
    step = jax.jit(model.apply, donate_argnums=2)
    caches = {name: empty_cache(model, codec, CACHE_TOKENS) for name, codec in CACHES.items()}
    for round_index in range(ROUNDS + 1):
        for name in CACHES:
            for i in range(STEPS_A_ROUND):
                start = time.perf_counter()
                at = CACHE_TOKENS - STEPS_A_ROUND + i
                cache = caches[name]
                logits, caches[name] = step(model.params, ids, cache, at)
                jax.block_until_ready(logits)
                if round_index:
                    times[name].append(time.perf_counter() - start)
    dense = float(np.median(times["dense f32"]))
    for name, seconds in times.items():
        median_seconds = float(np.median(seconds))
        yield (
            name,
            {
                "tokens_per_second": round(1 / median_seconds, 2),
                "speed_ratio": round(dense / median_seconds, 3),
            },
        )


class EnoughTokens(Exception):
    """As many tokens were generated as were asked for."""


def generate_once(name, tokens):
    """The growth of this process's resident bytes in a generation, from its start to its peak."""
    model = models.load("smollm2-135m")
    model = dataclasses.replace(model, config=dataclasses.replace(model.config, eos=()))
    jax.block_until_ready(model.params)
    prompt = np.random.default_rng(SEED).integers(0, model.config.vocab, PROMPT_TOKENS)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # memory that is free but resident would hide growth
    before, texts = resident_bytes()["VmRSS"], []
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the kernel resets the peak

    def stream(text):
        texts.append(text)
        if len(texts) >= tokens:
            raise EnoughTokens

    with contextlib.suppress(EnoughTokens):
        options = dict(max_new_tokens=CACHE_TOKENS - PROMPT_TOKENS, cache=CACHES[name])
        models.generate(model, prompt, **options, stream=stream)
    peak = resident_bytes()["VmHWM"]
    return {"tokens": len(texts), "before_bytes": before, "grown_bytes": peak - before}


def resident_bytes():
    lines = map(str.split, pathlib.Path("/proc/self/status").read_text().splitlines())
    return {words[0][:-1]: int(words[1]) * 1024 for words in lines if words[0].startswith("Vm")}


def generation_rows(rows, tokens):
    with tempfile.TemporaryDirectory() as folder:
        cache_settings = {"JAX_COMPILATION_CACHE_DIR": folder}
        cache_settings |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        for name in CACHES:
            if rows[name].get("generation", {}).get("tokens", 0) >= tokens:
                continue
            for count in (3, tokens):  # the first process fills the cache of programs
                command = [sys.executable, __file__, "--one", name, "--generate", str(count)]
                options = dict(stdout=subprocess.PIPE, env=os.environ | cache_settings)
                process = subprocess.run(command, check=True, **options)
            yield name, {"generation": json.loads(process.stdout.splitlines()[-1])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=pathlib.Path)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--generate", type=int, metavar="TOKENS")
    parser.add_argument("--one", choices=CACHES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        return print(json.dumps(generate_once(args.one, args.generate)))
    path = pathlib.Path(__file__).with_suffix(".json")
    model = models.load("smollm2-135m")
    results = {
        "command": " ".join(["python", "experiments/speed/kv_cache.py", *sys.argv[1:]]),
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "model": model.source,
        "gguf_sha256": hashlib.sha256(downloading.fetch("smollm2-135m").read_bytes()).hexdigest(),
        "seed": SEED,
        "windows": args.windows,
        "length": CACHE_TOKENS,
        "rows": {name: {} for name in CACHES},
    }
    if path.exists():
        earlier = json.loads(path.read_text())
        results["command"] = f"{earlier['command']}; {results['command']}"
        results["rows"] = earlier["rows"]

    def add(rows):
        for name, row in rows:
            results["rows"][name] |= row
            path.write_text(json.dumps(results, indent=1) + "\n")
            print(name, row, flush=True)

    if args.generate:
        add(generation_rows(results["rows"], args.generate))
    if args.speed:
        add(speed_rows(model))
    if args.text:
        text = args.text.read_text(encoding="utf-8")
        add(memory_rows(model))
        add(quality_rows(model, text[len(text) // 2 :], args.windows))


if __name__ == "__main__":
    main()
