"""GPTQ of Llama 3.1 8B one block at a time, in the memory of a laptop: by_block_memory.json.

    pip install -e .
    python experiments/memory/by_block_memory.py

The model has the shapes of Llama 3.1 8B in bfloat16, cut to 2 and to 3 of its 32 layers; its random
weights are drawn when they are read. `encode_by_block` runs in a process of its own: 4 bits by
groups of 128 with Gram matrices, 8 bits for embedding and head, 4 batches of 512 tokens. The peak
is that of the process (VmHWM, Linux). Each further layer adds the bytes of its encoded form;
`whole_bytes` adds 29 more layers so.
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


def random_weight(path: str, shape: tuple[int, ...]) -> Lazy:
    """A random weight that is read one layer at a time, as from a checkpoint on disk."""
    stacked = path.startswith("layers/")

    def read(i):
        random = np.random.default_rng((zlib.crc32(path.encode()), i or 0))
        out = random.standard_normal(shape[1:] if stacked else shape, np.float32)
        out *= 0.02
        return out.astype(ml_dtypes.bfloat16)

    return Lazy(shape, np.dtype(ml_dtypes.bfloat16), read, stacked=stacked)


def measure(layers: int) -> dict:
    """Encodes a model of `layers` layers in this process; returns its row of the results."""
    published = jm.models.load("llama-8b").config
    config = dataclasses.replace(published, layers=layers)
    ids_shape = jax.ShapeDtypeStruct((1, 1), "int32")
    shapes = jax.eval_shape(llama.module(config).init, jax.random.key(0), ids_shape)["params"]
    leaves, tree = jax.tree.flatten(shapes)
    tensors = tree.unflatten([random_weight(p, x.shape) for p, x in zip(jm.paths(shapes), leaves)])
    model = jm.models.Model(config, tensors, None, "random")
    ids = np.random.default_rng(0).integers(config.vocab, size=(BATCHES, 1, TOKENS))
    plan = jm.choose(shapes, CODECS)
    start = time.perf_counter()
    progress = lambda done, count: print(done, "of", count, file=sys.stderr, flush=True)
    batches = [(jnp.asarray(row),) for row in ids]
    encoded = jm.encode_by_block(model, plan, batches, progress=progress)
    jax.block_until_ready(encoded)
    status = pathlib.Path("/proc/self/status").read_text()
    return {
        "layers": layers,
        "peak_rss": int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024,
        "seconds": round(time.perf_counter() - start, 1),
        "dense_bytes": 2 * sum(x.size for x in leaves),
        "encoded_bytes": jm.nbytes(encoded),
        "layer_bytes": jm.nbytes(encoded["layers"]) // layers,
    }


def main() -> None:
    if sys.argv[1:]:
        print(json.dumps(measure(int(sys.argv[1]))))
        return
    path = pathlib.Path(__file__).with_suffix(".json")
    rows = []
    for layers in LAYERS:
        child = [sys.executable, __file__, str(layers)]
        output = subprocess.run(child, stdout=subprocess.PIPE, check=True).stdout
        rows.append(json.loads(output.splitlines()[-1]))
        print(rows[-1], flush=True)
    all_layers = jm.models.load("llama-8b").config.layers
    last = rows[-1]
    results = {
        "command": "python experiments/memory/by_block_memory.py",
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "cores": len(os.sched_getaffinity(0)),
        "seed": 0,
        "batches": [BATCHES, TOKENS],
        "rows": rows,
        "whole_bytes": last["peak_rss"] + (all_layers - last["layers"]) * last["layer_bytes"],
    }
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
