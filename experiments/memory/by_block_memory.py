"""GPTQ of a Llama 3.1 8B a block at a time, in the memory of a laptop: writes by_block_memory.json.

    pip install -e .
    python experiments/memory/by_block_memory.py

The shapes of Llama 3.1 8B in bfloat16, with random weights that are made when they are read, cut to
2 and to 3 of its 32 layers: `encode_by_block` in a process of its own, 4 bits by groups of 128 with
Gram matrices, 8 bits for embedding and head, 4 batches of 512 tokens. Peak is the process's (VmHWM,
Linux). A further layer adds what its encoded form takes; `whole_bytes` adds 29 more of those.
"""

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
import time
import zlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

import jaxmem as jm
from jaxmem.architectures import llama
from jaxmem.core.lazy import Lazy

BATCHES, TOKENS = 4, 512
LAYERS = (2, 3)
CODECS = {
    r"layers/(attn|mlp)/.*/kernel": jm.GPTQ(jm.Int(4, group=128)),
    r"(embed/embedding|head/kernel)": jm.Int(8),
}


def made(path: str, shape: tuple[int, ...]) -> Lazy:
    """A weight as a checkpoint on disk would give it: read a layer at a time."""
    stacked = path.startswith("layers/")

    def read(i):
        random = np.random.default_rng((zlib.crc32(path.encode()), i or 0))
        out = random.standard_normal(shape[1:] if stacked else shape, np.float32)
        out *= 0.02
        return out.astype(ml_dtypes.bfloat16)

    return Lazy(shape, np.dtype(ml_dtypes.bfloat16), read, stacked=stacked)


def measured(layers: int) -> dict:
    """Encodes a model of so many layers in this process."""
    whole = jm.models.load("llama-8b").config
    config = dataclasses.replace(whole, layers=layers)
    first = jax.ShapeDtypeStruct((1, 1), "int32")
    shapes = jax.eval_shape(llama.module(config).init, jax.random.key(0), first)["params"]
    leaves, tree = jax.tree.flatten(shapes)
    tensors = tree.unflatten([made(p, x.shape) for p, x in zip(jm.paths(shapes), leaves)])
    model = jm.models.Model(config, tensors, None, "random")
    ids = np.random.default_rng(0).integers(config.vocab, size=(BATCHES, 1, TOKENS))
    plan = jm.choose(shapes, CODECS)
    start = time.perf_counter()
    tell = lambda done, count: print(done, "of", count, file=sys.stderr, flush=True)
    found = jm.encode_by_block(model, plan, [(jnp.asarray(row),) for row in ids], progress=tell)
    jax.block_until_ready(found)
    status = pathlib.Path("/proc/self/status").read_text()
    return {
        "layers": layers,
        "peak_rss": int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024,
        "seconds": round(time.perf_counter() - start, 1),
        "dense_bytes": 2 * sum(x.size for x in leaves),
        "encoded_bytes": jm.nbytes(found),
        "layer_bytes": jm.nbytes(found["layers"]) // layers,
    }


def main() -> None:
    if sys.argv[1:]:
        print(json.dumps(measured(int(sys.argv[1]))))
        return
    path = pathlib.Path(__file__).with_suffix(".json")
    rows = []
    for layers in LAYERS:
        child = [sys.executable, __file__, str(layers)]
        out = subprocess.run(child, stdout=subprocess.PIPE, check=True).stdout
        rows.append(json.loads(out.splitlines()[-1]))
        print(rows[-1], flush=True)
    whole = jm.models.load("llama-8b").config.layers
    last = rows[-1]
    found = {
        "command": "python experiments/memory/by_block_memory.py",
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "cores": len(os.sched_getaffinity(0)),
        "seed": 0,
        "batches": [BATCHES, TOKENS],
        "rows": rows,
        "whole_bytes": last["peak_rss"] + (whole - last["layers"]) * last["layer_bytes"],
    }
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
