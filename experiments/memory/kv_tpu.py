"""A step of generation on a TPU with its cache in 16, 8, 4 and 2 bits: writes kv_tpu.json.

    pip install -e ".[tpu]"
    python experiments/memory/kv_tpu.py

The compiler says how many bytes the step holds and moves; nothing is run. The step reads one token
for each of `batch` sequences, with `length` tokens in the cache, which it updates in place. Weights
are int8 (8B) or bfloat16 (1B). Temporaries are counted beside weights and cache.
"""

import hashlib
import json
import pathlib

import jax
import jax.numpy as jnp

import jaxmem as jm
from jaxmem.models import KVCache

DEVICE = "tpu v5e:1x1"
SHAPES = (
    ("llama-1b", 1, 8192),
    ("llama-1b", 8, 4096),
    ("llama-8b", 1, 8192),
    ("llama-8b", 4, 8192),
)
CACHES = {"bfloat16": None} | {
    f"{bits} bits{', rotated' * rotate}": KVCache(bits, rotate=rotate)
    for bits in (8, 4, 2)
    for rotate in (False, True)
}


def rows():
    for name, batch, length in SHAPES:
        model = jm.models.load(name)
        params = model.params
        if name == "llama-8b":
            codecs = {r"layers/.*/kernel": jm.Int(8)}
            params = jax.eval_shape(lambda p: jm.encode(p, jm.choose(p, codecs)), params)  # noqa: B023
        for cache_name, cache_codec in CACHES.items():
            dense_cache = lambda config, *sizes: config.cache(*sizes)
            make_cache = cache_codec.empty if cache_codec else dense_cache
            cache = jax.eval_shape(lambda: make_cache(model.config, batch, length, jnp.bfloat16))  # noqa: B023
            shape = lambda *dims: jax.ShapeDtypeStruct(dims, jnp.int32)
            args = params, shape(batch, 1), cache, shape()
            m = jm.memory(model.apply, *args, donate_argnums=2, device=DEVICE)
            row = {"model": name, "batch": batch, "length": length, "cache": cache_name}
            row |= {"cache_bytes": jm.nbytes(cache), "temp_bytes": m.temp, "traffic": m.traffic}
            print(row, flush=True)
            yield row


def config_hash(name):
    config = json.dumps(jm.models.load(name).config.to_dict(), sort_keys=True)
    return hashlib.sha256(config.encode()).hexdigest()


def main() -> None:
    results = {
        "command": "python experiments/memory/kv_tpu.py",
        "jax": jax.__version__,
        "backend": "a TPU target, compiled and not run",
        "device": DEVICE,
        "config_sha256": {name: config_hash(name) for name, *_ in SHAPES},
        "seed": None,
        "rows": list(rows()),
    }
    path = pathlib.Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
